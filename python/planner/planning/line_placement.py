"""Where an answer of the search puts every block: the device of its run, its home, and what runs it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from planner.choices import PieceWay
from planner.devices.keys import DeviceKey
from planner.planning.line import PlannedLine
from planner.planning.line_sizes import HOST
from planner.planning.spilling import Spillable, spilled
from planner.strategies.timed import LineAnswer

__all__ = ["LinePlacement"]


class LinePlacement:
    """An answer in keys of devices, by piece.

    Args:
        line: what was searched.
        answer: of the search.

    Where the host has no room for all that rests there, some of what is fetched lies on the disk, if it may.
    """

    def __init__(self, line: PlannedLine, answer: LineAnswer) -> None:
        self.line, self.answer = line, answer
        self.stages: list[DeviceKey] = []
        self.ways: list[PieceWay] = []
        for run in answer.runs:
            self.stages += [line.runners[run.device]] * (run.end - run.first)
            self.ways += run.ways
        self.homes = self._homes()
        self.runs: list[DeviceKey] = [
            HOST if way == "beside" else home if way == "tied" else stage
            for way, home, stage in zip(self.ways, self.homes, self.stages, strict=True)
        ]
        self.lacking_bytes = self._on_host_bytes - self._host_bytes
        if self.lacking_bytes > 0:
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

    def has_room_to_fetch(self, piece: int) -> bool:
        """Whether the device of its run has room for a piece that is brought in, one at a time, beside what lies and is kept there."""
        line, stage = self.line, self.stages[piece]
        inside = [each for each, device in enumerate(self.stages) if device == stage]
        resting = sum(line.work[each].weight_bytes for each in inside if self.homes[each] == stage)
        stays = sum(line.staying_bytes[each] for each in inside if self.homes[each] != stage)
        kept = sum(line.kept_bytes(each) for each in inside if self.runs[each] == stage)
        fetched = (each for each in inside if each == piece or self.ways[each] == "fetched")
        largest = max(line.work[each].weight_bytes for each in fetched)
        return resting + stays + kept + largest <= line.capacity_bytes[stage]

    @cached_property
    def _host_bytes(self) -> int:
        """Room for weights: what is kept of what the host runs is there, too."""
        line = self.line
        kept = [line.kept_bytes(piece) for piece, runner in enumerate(self.runs) if runner == HOST]
        return line.capacity_bytes.get(HOST, 0) - sum(kept)

    @property
    def _on_host_bytes(self) -> int:
        return sum(
            work.weight_bytes for work, home in zip(self.line.work, self.homes, strict=True) if home == HOST
        )

    def _spill(self) -> None:
        line, members = self.line, dict[int, list[int]]()
        for piece, unit in enumerate(line.units):  # what shares its weights has one home
            members.setdefault(unit, []).append(piece)
        units = [
            Spillable(
                tuple(pieces),
                sum(line.work[piece].weight_bytes for piece in pieces),
                sum(self._extra_ps(piece) for piece in pieces),
            )
            for pieces in members.values()
            if all(map(self._may_spill, pieces))
        ]
        for found in spilled(units, self.lacking_bytes):
            for piece in found.pieces:
                self.homes[piece] = "disk"

    def _extra_ps(self, piece: int) -> int:
        """What fetching from the disk takes beyond fetching from the host."""
        runner = self.runs[piece]
        return max(0, self.line.fetch_ps(piece, runner, "disk") - self.line.fetch_ps(piece, runner, HOST))

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

    def by_block(self) -> tuple[list[DeviceKey], list[DeviceKey]]:
        """Where each block lies and runs, in the order of the model."""
        places = sorted(range(len(self.line.order)), key=self.line.order.__getitem__)
        return [self.homes[place] for place in places], [self.runs[place] for place in places]

    def displaced(self) -> Sequence[int]:
        """Blocks that lie elsewhere than they run."""
        return [
            block for block, (home, run) in enumerate(zip(self.homes, self.runs, strict=True)) if home != run
        ]
