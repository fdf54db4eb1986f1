"""A plan as vLLM takes it."""

from __future__ import annotations

from planner.export.command import Command
from planner.export.ranks import even_nodes, model_argument, rank_notes
from planner.plans.plan import Plan
from planner.plans.stages import stages_of

__all__ = ["vllm"]


def vllm(plan: Plan) -> Command:
    """What vLLM is started with, so that its pipeline stages are the plan's.

    Args:
        plan: as ``engine="vllm"`` makes it.

    Raises:
        InvalidInputError: a plan that is no pipeline; says why, and the setting that mends it.

    Guarantee: counts are at least 1 and add up to the model's hidden layers, which vLLM itself does not check.

    Source: vLLM 0.33, ``vllm/distributed/utils.py``, ``get_pp_indices``.

    Example:
        >>> from torch import nn
        >>> import planner
        >>> model = nn.ModuleDict({"embed": nn.Embedding(9, 8), "layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(4)),
        ...     "head": nn.Linear(8, 9)})
        >>> made = planner.plan(model, max_memory={0: 1160, 1: 700})
        >>> vllm(made).line
        'VLLM_PP_LAYER_PARTITION=3,1 vllm serve MODEL --pipeline-parallel-size 2'
    """
    stages = stages_of(plan, "vllm")
    env, notes = rank_notes(stages, {"VLLM_PP_LAYER_PARTITION": ",".join(map(str, stages.counts))})
    nodes = even_nodes(stages, "vLLM")
    args = ["vllm", "serve", model_argument(plan.source), "--pipeline-parallel-size", str(len(stages.stages))]
    if nodes > 1:
        args += ["--nnodes", str(nodes), "--node-rank", "0", "--master-addr", "HOST"]
    known = [
        "blocks of KV cache are the least over ranks: maximise='cache' of strategy 'throughput' makes that the most"
    ]
    if stages.extra:
        known.append(
            f"{stages.extra} layers that only predict further tokens are with the last stage, beyond the counts"
        )
    return Command(env=env, args=tuple(args), notes=(*notes, *known))
