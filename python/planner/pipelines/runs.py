"""Which layers each stage of a pipeline runs, and on which device: from a plan, or from counts of layers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from planner.devices.keys import DeviceKey
from planner.errors import InvalidInputError, PlanMismatchError
from planner.names import named
from planner.plans.plan import Plan
from planner.plans.runs import Run, blocks_of
from planner.spelling import shown

__all__ = ["StageRun", "read_plan", "stage_runs"]

_MOST_BYTES = 1 << 28


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
        InvalidInputError: neither; counts that are no numbers, or below 1; a file that is no plan.
        PlanMismatchError: a plan that no pipeline can run, with the setting that avoids it. Fields: ``findings``.

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
        if type(count) is not int or count < 1:
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
    blocks = blocks_of(plan)
    name, length = _layer_list(plan, blocks)
    layers: dict[int, list[Run]] = {}
    for block in blocks:
        number = _layer_of(block.first, name)
        if number is not None:
            layers.setdefault(number, []).append(block)
    devices = {number: _device_of(f"{name}.{number}", parts) for number, parts in layers.items()}
    if sorted(devices) != list(range(length)):
        raise _mismatch(f"the plan names {len(devices)} layers of {length} in {named(name)}")
    runs = [(device, len(list(numbers))) for device, numbers in groupby(range(length), devices.__getitem__)]
    twice = [device for device, many in _counted(device for device, _ in runs) if many > 1]
    if twice:
        raise _mismatch(
            f"device {twice[0]} runs layers that do not lie together, and a stage is one run; plan with strategy='pipeline'"
            " or 'throughput' without twice the same device"
        )
    _require_ends(blocks, name, devices[0], devices[length - 1])
    return _runs(runs)


def _device_of(layer: str, parts: Sequence[Run]) -> DeviceKey:
    for part in parts:
        if part.home != part.runs_on or part.home == "disk":
            raise _mismatch(
                f"{named(part.first)} rests on {part.home} and runs on {part.runs_on}; a stage holds what it runs: plan with"
                " mode='gpu_only', or with more devices"
            )
    devices = {part.home for part in parts}
    if len(devices) > 1:
        raise _mismatch(
            f"{named(layer)} is divided over devices {', '.join(map(str, sorted(devices, key=str)))}, and a stage has whole layers:"
            " plan with granularity='block'"
        )
    return parts[0].home


def _require_ends(blocks: Sequence[Run], name: str, first: DeviceKey, last: DeviceKey) -> None:
    is_before = True
    for block in blocks:
        if _layer_of(block.first, name) is not None:
            is_before = False
            continue
        wanted = first if is_before else last
        if block.home != wanted or block.runs_on != wanted:
            end = "first" if is_before else "last"
            raise _mismatch(
                f"{named(block.first)} is on {block.home}, and the {end} layer on {wanted}: what comes"
                f" {'before' if is_before else 'after'} the layers runs with the {end} of them; pin={{{block.first!r}: {wanted!r}}}"
            )


def _layer_list(plan: Plan, blocks: Sequence[Run]) -> tuple[str, int]:
    """The name of the longest list of layers, and how many it has."""
    numbers: dict[str, set[int]] = {}
    for block in blocks:
        for outer, number in _numbered(block.first):
            numbers.setdefault(outer, set()).add(number)
    if not numbers:
        raise _mismatch("the plan has no list of layers that could be cut into stages")
    name = max(numbers, key=lambda outer: len(numbers[outer]))
    return name, max(len(numbers[name]), max(numbers[name]) + 1)


def _numbered(name: str) -> Iterator[tuple[str, int]]:
    """Each list around a name, with the number that it has there."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdecimal() and at:
            yield ".".join(parts[:at]), int(part)
            return


def _layer_of(name: str, outer: str) -> int | None:
    """Which layer of a list a block lies in, None for others."""
    return next((number for found, number in _numbered(name) if found == outer), None)


def _counted(devices: Iterator[DeviceKey]) -> list[tuple[DeviceKey, int]]:
    found: dict[DeviceKey, int] = {}
    for device in devices:
        found[device] = found.get(device, 0) + 1
    return list(found.items())


def _mismatch(said: str) -> PlanMismatchError:
    return PlanMismatchError(f"this plan cannot be a pipeline: {said}", findings=(said,))
