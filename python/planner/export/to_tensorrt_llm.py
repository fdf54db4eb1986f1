"""A plan as TensorRT-LLM takes it."""

from __future__ import annotations

from planner.export.command import Command
from planner.export.ranks import model_argument, rank_notes
from planner.plans.plan import Plan
from planner.plans.stages import stages_of

__all__ = ["tensorrt_llm"]

_OPTIONS = "options.yaml"


def tensorrt_llm(plan: Plan) -> Command:
    """What TensorRT-LLM is started with, so that its pipeline stages are the plan's: arguments of its LLM API, in a file of options.

    Args:
        plan: as ``engine="tensorrt_llm"`` makes it.

    Raises:
        InvalidInputError: a plan that is no pipeline; says why, and the setting that mends it.

    Source: TensorRT-LLM, its pull request 9003.

    Example:
        >>> from torch import nn
        >>> import planner
        >>> model = nn.ModuleDict({"embed": nn.Embedding(9, 8), "layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(4)),
        ...     "head": nn.Linear(8, 9)})
        >>> made = planner.plan(model, max_memory={0: 1160, 1: 700})
        >>> print(tensorrt_llm(made).files["options.yaml"])
        pipeline_parallel_size: 2
        pp_partition: [3, 1]
        <BLANKLINE>
    """
    stages = stages_of(plan, "tensorrt_llm")
    env, notes = rank_notes(stages, {})
    counts = ", ".join(map(str, stages.counts))
    text = f"pipeline_parallel_size: {len(stages.stages)}\npp_partition: [{counts}]\n"
    args = ("trtllm-serve", model_argument(plan.source), "--extra_llm_api_options", _OPTIONS)
    said = f"in Python: LLM(MODEL, pipeline_parallel_size={len(stages.stages)}, pp_partition=[{counts}])"
    extra = f"{stages.extra} layers that only predict further tokens are on the last rank, beyond the counts"
    return Command(
        env=env, args=args, files={_OPTIONS: text}, notes=(*notes, said, *([extra] if stages.extra else []))
    )
