"""Where an answer of the search puts every block: the device of its run, its home, and what runs it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from planner.choices import PieceWay
from planner.devices.keys import DeviceKey
from planner.planning.line import PlannedLine
from planner.planning.line_sizes import HOST
from planner.strategies.timed import LineAnswer

__all__ = ["LinePlacement"]


class LinePlacement:
    """An answer in keys of devices, by block in the order of execution.

    Args:
        line: what was searched.
        answer: of the search.

    Where the host has no room for all that rests there, what is fetched lies on the disk, from the end on, if it may.
    """

    def __init__(self, line: PlannedLine, answer: LineAnswer) -> None:
        self.line, self.answer = line, answer
        self.stages: list[DeviceKey] = []
        self.ways: list[PieceWay] = []
        for run in answer.runs:
            self.stages += [line.runners[run.device]] * (run.end - run.first)
            self.ways += run.ways
        self.runs: list[DeviceKey] = [
            HOST if way == "beside" else stage for way, stage in zip(self.ways, self.stages, strict=True)
        ]
        self.homes = self._homes()
        self.is_over = self._on_host_bytes > self._host_bytes
        if self.is_over:
            self._spill()

    @cached_property
    def has_room(self) -> bool:
        """Whether the host has room for what rests there."""
        return self._on_host_bytes <= self._host_bytes

    def _homes(self) -> list[DeviceKey]:
        line, homes = self.line, []
        of_unit: dict[int, DeviceKey] = {}
        if "tied" in self.ways:  # what shares its weights has them there
            resident = (block for block, way in enumerate(self.ways) if way == "resident")
            of_unit = {line.units[block]: self.stages[block] for block in resident}
        for block, (way, stage) in enumerate(zip(self.ways, self.stages, strict=True)):
            if way == "tied":
                homes.append(of_unit[line.units[block]])
            else:
                homes.append(stage if way == "resident" else line.rests(block) or stage)
        return homes

    @property
    def _host_bytes(self) -> int:
        return self.line.capacity_bytes.get(HOST, 0)

    @property
    def _on_host_bytes(self) -> int:
        return sum(
            work.weight_bytes for work, home in zip(self.line.work, self.homes, strict=True) if home == HOST
        )

    def _spill(self) -> None:
        line, members = self.line, dict[int, list[int]]()
        for block in range(len(self.homes)):
            members.setdefault(line.units[block], []).append(block)
        on_host = self._on_host_bytes
        for unit in sorted(members.values(), key=max, reverse=True):  # what shares its weights has one home
            if on_host <= self._host_bytes:
                return
            if all(self._may_spill(each) for each in unit):
                for each in unit:
                    self.homes[each] = "disk"
                on_host -= sum(line.work[each].weight_bytes for each in unit)

    def _may_spill(self, block: int) -> bool:
        return self.ways[block] == "fetched" and self.homes[block] == HOST and self.line.may_spill(block)

    def host_up_to_tokens(self, block: int) -> int | None:
        """Of what the host runs for another device's run, up to how many new tokens; None where it always does, and of all else."""
        is_beside = self.ways[block] == "beside"
        return self.line.host_up_to_tokens(block, self.stages[block]) if is_beside else None

    def staged(self) -> Sequence[int]:
        """Blocks that are brought in to the device of their run, if only in longer steps."""
        return [
            block
            for block, way in enumerate(self.ways)
            if way == "fetched" or self.host_up_to_tokens(block) is not None
        ]

    def displaced(self) -> Sequence[int]:
        """Blocks that lie elsewhere than they run."""
        return [
            block for block, (home, run) in enumerate(zip(self.homes, self.runs, strict=True)) if home != run
        ]
