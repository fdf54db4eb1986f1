"""What can be said of a plan to DeepSpeed."""

from __future__ import annotations

from planner.export.command import Command
from planner.plans.plan import Plan
from planner.plans.stages import stages_of

__all__ = ["deepspeed"]


def deepspeed(plan: Plan) -> Command:
    """The counts of layers, for which DeepSpeed's ``PipelineModule`` has no public argument; no command.

    Args:
        plan: as ``engine="deepspeed"`` makes it.

    Raises:
        InvalidInputError: a plan that is no pipeline; says why, and the setting that mends it.

    Source: DeepSpeed 0.19, ``deepspeed/runtime/pipe/module.py``: ``partition_method`` is uniform, parameters, type:regex.

    Example:
        >>> from torch import nn
        >>> import planner
        >>> model = nn.ModuleDict({"embed": nn.Embedding(9, 8), "layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(4)),
        ...     "head": nn.Linear(8, 9)})
        >>> made = planner.plan(model, max_memory={0: 1160, 1: 700})
        >>> print(deepspeed(made).notes[0])
        layers by stage: 3, 1
    """
    stages = stages_of(plan, "deepspeed")
    return Command(
        notes=(
            f"layers by stage: {', '.join(map(str, stages.counts))}",
            "DeepSpeed's PipelineModule has no public way to say this: partition_method is 'uniform', 'parameters' or 'type:regex' "
            "(its issue 2974 is open)",
        )
    )
