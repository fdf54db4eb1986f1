"""Which layers each stage of a pipeline runs, and on which device: from a plan, or from counts of layers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from planner.devices.keys import DeviceKey
from planner.errors import InvalidInputError
from planner.plans.plan import Plan
from planner.plans.stages import stages_of
from planner.spelling import shown

__all__ = ["StageRun", "read_plan", "stage_runs"]

_MOST_BYTES = 1 << 28
_MOST_LAYERS = 1 << 20


@dataclass(frozen=True, slots=True)
class StageRun:
    """What one stage of a pipeline runs.

    Args:
        index: which stage, from 0 on.
        count: how many there are.
        layers: numbers of its layers in the whole model.
        device: where the plan has them; None where only layers were counted.
    """

    index: int
    count: int
    layers: range
    device: DeviceKey | None = None

    @property
    def is_first(self) -> bool:
        """Whether it also runs what comes before the layers."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether it also runs what comes after the layers."""
        return self.index == self.count - 1


def stage_runs(asked: Plan | str | os.PathLike[str] | Sequence[int]) -> tuple[StageRun, ...]:
    """The stages of a pipeline.

    Args:
        asked: a plan, the file that ``to_json`` was written to, or how many layers each stage has.

    Raises:
        InvalidInputError: neither; counts that are no numbers, or below 1; a file that is no plan; a plan that no pipeline can run, with
            the setting that avoids it.

    Guarantee: each layer is in one stage, neighbours are together, and no stage is empty.

    Example:
        >>> [list(run.layers) for run in stage_runs((1, 2))]
        [[0], [1, 2]]
    """
    if isinstance(asked, Plan):
        return _of_plan(asked)
    if isinstance(asked, str | os.PathLike):
        return _of_plan(read_plan(asked))
    return _of_counts(asked)


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """The plan in a file. Raises InvalidInputError where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MOST_BYTES)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"no plan can be read from {shown(str(path))}: {error}") from error
    try:
        return Plan.from_json(text)
    except InvalidInputError as error:
        raise InvalidInputError(f"{os.fspath(path)}: {error.message}") from error


def _of_counts(counts: Any) -> tuple[StageRun, ...]:
    if not isinstance(counts, Sequence) or isinstance(counts, bytes | bytearray) or not counts:
        raise InvalidInputError(
            f"stages says how many layers each stage has, as in (3, 5), or is a plan; got {shown(counts)}"
        )
    for index, count in enumerate(counts):
        if type(count) is not int or not 1 <= count < _MOST_LAYERS:
            raise InvalidInputError(
                f"stage {index} would have {shown(count)} layers; every stage needs a whole number of them, at least 1"
            )
    return _runs([(None, count) for count in counts])


def _runs(stages: Sequence[tuple[DeviceKey | None, int]]) -> tuple[StageRun, ...]:
    found, first = [], 0
    for index, (device, count) in enumerate(stages):
        found.append(StageRun(index, len(stages), range(first, first + count), device))
        first += count
    return tuple(found)


def _of_plan(plan: Plan) -> tuple[StageRun, ...]:
    return _runs([(stage.device, stage.count) for stage in stages_of(plan, "planner").stages])
