"""A plan as SGLang takes it."""

from __future__ import annotations

from planner.export.command import Command
from planner.export.ranks import even_nodes, model_argument, rank_notes
from planner.plans.plan import Plan
from planner.plans.stages import stages_of

__all__ = ["sglang"]


def sglang(plan: Plan) -> Command:
    """What SGLang is started with, so that its pipeline stages are the plan's.

    Args:
        plan: as ``engine="sglang"`` makes it.

    Raises:
        InvalidInputError: a plan that is no pipeline; says why, and the setting that mends it.

    Guarantee: counts are at least 1 and add up to the model's hidden layers, which SGLang itself does not check.

    Source: SGLang 0.5.23, ``sglang/srt/distributed/utils.py``, ``get_pp_indices``.

    Example:
        >>> from torch import nn
        >>> import planner
        >>> model = nn.ModuleDict({"embed": nn.Embedding(9, 8), "layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(4)),
        ...     "head": nn.Linear(8, 9)})
        >>> made = planner.plan(model, max_memory={0: 1160, 1: 700})
        >>> sglang(made).line
        'SGLANG_PP_LAYER_PARTITION=3,1 python -m sglang.launch_server --model-path MODEL --pipeline-parallel-size 2'
    """
    stages = stages_of(plan, "sglang")
    env, notes = rank_notes(stages, {"SGLANG_PP_LAYER_PARTITION": ",".join(map(str, stages.counts))})
    nodes = even_nodes(stages, "SGLang")
    args = ["python", "-m", "sglang.launch_server", "--model-path", model_argument(plan.source)]
    args += ["--pipeline-parallel-size", str(len(stages.stages))]
    if nodes > 1:
        args += ["--nnodes", str(nodes), "--node-rank", "0", "--dist-init-addr", "HOST:29500"]
    if stages.extra:
        notes = (*notes, f"{stages.extra} layers that only predict further tokens are beyond the counts")
    return Command(env=env, args=tuple(args), notes=notes)
