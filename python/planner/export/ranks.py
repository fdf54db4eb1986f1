"""Which process runs which stage: the order of runs is the order of ranks, and each computer sees its own devices."""

from __future__ import annotations

from collections.abc import Mapping

from planner.errors import InvalidInputError
from planner.plans.parts import Source
from planner.plans.stages import PlanStages
from planner.plans.torchrun import nodes_of, visible_devices

__all__ = ["even_nodes", "model_argument", "rank_notes"]

_SEEN = "CUDA_VISIBLE_DEVICES"


def model_argument(source: Source) -> str:
    """What to name the model: what was planned where it has files, else a word that stands for it."""
    if source.kind == "module" or not source.name:
        return "MODEL"
    return f"./{source.name}" if source.name.startswith("-") else source.name  # which would be an option


def rank_notes(stages: PlanStages, env: Mapping[str, str]) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """The environment with which stages meet their devices, and what to say of several computers.

    Args:
        stages: of a plan.
        env: what every process needs.
    """
    devices = [stage.device for stage in stages.stages]
    computers = nodes_of(devices)
    if len(computers) == 1:
        seen = visible_devices(devices)
        return env if seen is None else {**env, _SEEN: seen}, ()
    notes = [f"ranks are stages in the plan's order: {', '.join(map(str, devices))}"]
    if env:
        notes.append(f"{', '.join(env)} has to be set on every computer")
    for node, own in computers:
        seen = visible_devices(own)
        if seen is not None:
            notes.append(f"on {node}: {_SEEN}={seen}")
    return env, tuple(notes)


def even_nodes(stages: PlanStages, engine: str) -> int:
    """How many computers there are, for an engine whose launcher gives each as many neighbouring stages.

    Raises:
        InvalidInputError: they have different numbers, or one is come back to.
    """
    computers = nodes_of([stage.device for stage in stages.stages])
    counts = [len(own) for _, own in computers]
    if len(set(counts)) > 1 or len({node for node, _ in computers}) < len(computers):
        has = ", ".join(f"{node} {len(own)}" for node, own in computers)
        raise InvalidInputError(
            f"{engine} starts as many stages on each computer, one computer after the other, and this plan has {has}: plan with "
            "max_memory of as many devices of each, and order='given'"
        )
    return len(computers)
