"""A plan as torchtitan takes it."""

from __future__ import annotations

import json

from planner.errors import InvalidInputError
from planner.export.command import Command
from planner.export.ranks import rank_notes
from planner.plans.parts import BOTH_ENDS
from planner.plans.plan import Plan
from planner.plans.stages import stages_of

__all__ = ["torchtitan"]


def torchtitan(plan: Plan) -> Command:
    """What torchtitan's configuration says, so that its pipeline stages are the plan's; in torchtitan's own names of modules.

    Args:
        plan: as ``engine="torchtitan"`` makes it.

    Raises:
        InvalidInputError: a plan that is no pipeline, or of a model whose head is tied or that has layers which only predict further
            tokens; says why, and what mends it.

    Source: torchtitan 0.3, ``torchtitan/distributed/pipeline_parallel.py``.

    Example:
        >>> from torch import nn
        >>> import planner
        >>> model = nn.ModuleDict({"embed": nn.Embedding(9, 8), "layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(4)),
        ...     "head": nn.Linear(8, 9)})
        >>> made = planner.plan(model, max_memory={0: 1160, 1: 700})
        >>> print(torchtitan(made).files["parallelism.py"].splitlines()[1])
        parallelism.module_fqns_per_model_part = [["tok_embeddings", "layers.0", "layers.1", "layers.2"], ["layers.3", "norm", "lm_head"]]
    """
    stages = stages_of(plan, "torchtitan")
    tied = [note for note in plan.source.notes if note.startswith(BOTH_ENDS)]
    if tied:
        raise InvalidInputError(
            f"torchtitan divides no model whose head is tied, and this plan's is ({tied[0]}): untie them (tie_word_embeddings=False)"
        )
    if stages.extra:
        raise InvalidInputError(
            f"torchtitan has no name for the {stages.extra} layers of the plan that only predict further tokens; plan a checkpoint "
            "without them"
        )
    parts = [
        [f"layers.{at}" for at in range(stage.first, stage.first + stage.count)] for stage in stages.stages
    ]
    parts[0].insert(0, "tok_embeddings")
    parts[-1] += ["norm", "lm_head"]
    env, notes = rank_notes(stages, {})
    text = (
        f"parallelism.pipeline_parallel_degree = {len(parts)}\n"
        f"parallelism.module_fqns_per_model_part = {json.dumps(parts)}\n"
    )
    known = (
        "for schedules of one stage a rank, such as 1F1B and GPipe: looped ones want a multiple of the ranks",
        "the plan counts weights and caches, and training has gradients and the optimizer's state besides",
    )
    return Command(env=env, files={"parallelism.py": text}, notes=(*notes, *known))
