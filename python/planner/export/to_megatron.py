"""A plan as Megatron core takes it."""

from __future__ import annotations

from planner.export.command import Command
from planner.export.ranks import rank_notes
from planner.plans.plan import Plan
from planner.plans.stages import stages_of

__all__ = ["megatron"]


def megatron(plan: Plan) -> Command:
    """The arguments of Megatron core, so that its pipeline stages are the plan's; they go to whatever script starts it.

    Args:
        plan: as ``engine="megatron"`` makes it.

    Raises:
        InvalidInputError: a plan that is no pipeline; says why, and the setting that mends it.

    Guarantee: as many stages as the parallel size, one ``E`` first and one ``L`` last, no stage empty.

    Source: Megatron core 0.19, ``megatron/core/transformer/pipeline_parallel_layer_layout.py``.

    Example:
        >>> from torch import nn
        >>> import planner
        >>> model = nn.ModuleDict({"embed": nn.Embedding(9, 8), "layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(4)),
        ...     "head": nn.Linear(8, 9)})
        >>> made = planner.plan(model, max_memory={0: 1160, 1: 700})
        >>> megatron(made).args[-1]
        'Et*3|tL'
    """
    stages = stages_of(plan, "megatron")
    words = [_times("t", count) for count in stages.counts]
    layout = f"E{'|'.join(words)}{_times('m', stages.extra)}L"
    env, notes = rank_notes(stages, {})
    args = [
        "--pipeline-model-parallel-size",
        str(len(words)),
        "--pipeline-model-parallel-layout",
        layout,
    ]
    if stages.extra:
        args = ["--mtp-num-layers", str(stages.extra), *args]
    known = "Megatron calls layouts experimental; embeddings and head of a tied model are kept equal by its own group"
    return Command(env=env, args=tuple(args), notes=(*notes, known))


def _times(letter: str, count: int) -> str:
    return letter * count if count < 2 else f"{letter}*{count}"
