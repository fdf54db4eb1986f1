"""What stays in memory, read in one pass in the order of the files: straight to where it stays, or through a ring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

import torch

from planner.errors import OffloadError
from planner.loading.casting import cast
from planner.loading.open_files import OpenFiles, tensor_in
from planner.loading.reading import PageBuffer
from planner.loading.recipe import Computed, ConverterRun
from planner.loading.streaming.caching import is_cached
from planner.loading.streaming.files import FileReads
from planner.loading.streaming.fillings import Filling, fillings_of, position_of
from planner.loading.streaming.layout import LINE_BYTES, Span, lay_out
from planner.loading.streaming.ring import NO_PINNED_MEMORY, SLOT_BYTES, Ring, stream_of
from planner.loading.weights import WantedTensor, made, sources_of

__all__ = ["ReadTensors", "Staying", "read_in_file_order"]

# Of buffers that many tensors lie in; as large as that, what they waste is nothing.
_BUFFER_BYTES: Final = 256 << 20
# What is cast passes a slot of this size.
_CAST_SLOT_BYTES: Final = 8 << 20
# An interrupt waits for what is read at once.
_AT_ONCE_BYTES: Final = 64 << 20


class Staying(NamedTuple):
    """A tensor that is to be read now.

    Args:
        wanted: how it comes out of the files.
        device: where it stays.
    """

    wanted: WantedTensor
    device: torch.device


@dataclass(slots=True, eq=False)
class ReadTensors:
    """What was read.

    Args:
        by_name: the tensors, each with a storage of its own size.
        read_bytes: bytes of files.
        notes: what else to know.
    """

    by_name: dict[str, torch.Tensor] = field(default_factory=dict)
    read_bytes: int = 0
    notes: tuple[str, ...] = ()


def read_in_file_order(
    staying: Iterable[Staying], files: OpenFiles, advance: Callable[[int], None]
) -> ReadTensors:
    """Reads tensors to where they stay.

    Args:
        staying: which, and where; each name once.
        files: the files.
        advance: is told of bytes that are done.

    Raises:
        OffloadError: they cannot be read, or a cast would make finite numbers infinite. Fields: ``name``.
        MemoryError, torch.OutOfMemoryError: there is no room.

    Guarantee: each byte is read once and crosses once. On the host there is nothing beside what stays but slots: two of 64 MiB on the way
        to accelerators, one of 8 MiB for casts; more only for what has to be computed as a whole. What is not in the page
        cache is read past it.
    """
    return _Pass(files, advance).run(staying)


class _Job(NamedTuple):
    """Something to be read.

    Args:
        position: where in the files it begins.
        run: reads it, and says how many bytes that were.
    """

    position: tuple[int, int]
    run: Callable[[], int]


class _Pass:
    """One pass over the files."""

    def __init__(self, files: OpenFiles, advance: Callable[[int], None]) -> None:
        self._files = files
        self._reads = FileReads(files)
        self._advance = advance
        self._found = ReadTensors()
        self._ring = Ring(self._reads)

    def run(self, staying: Iterable[Staying]) -> ReadTensors:
        across: list[Staying] = []
        straight: list[WantedTensor] = []
        recast: list[WantedTensor] = []
        computed: list[WantedTensor] = []
        for row in sorted(staying, key=lambda row: position_of(row.wanted)):
            wanted = row.wanted
            if not wanted.nbytes:
                shape = wanted.recipe.shape
                self._found.by_name[wanted.name] = torch.empty(shape, dtype=wanted.dtype, device=row.device)
            elif row.device.type != "cpu":
                across.append(row)
            elif isinstance(wanted.recipe, Computed):
                computed.append(wanted)
            elif wanted.recipe.dtype == wanted.dtype:
                straight.append(wanted)
            else:
                recast.append(wanted)
        jobs = [
            *self._across(across),
            *self._straight(straight),
            *self._cast(recast),
            *self._computed(computed),
        ]
        try:
            for job in sorted(jobs, key=lambda job: job.position):
                self._found.read_bytes += job.run()
        finally:
            self._ring.wait()
        if across and not self._ring.is_pinned:
            self._found.notes = (NO_PINNED_MEMORY,)
        return self._found

    def _across(self, rows: Sequence[Staying]) -> Iterator[_Job]:
        """To accelerators: through the ring."""
        # Made first: if they do not fit, nothing needs to be read.
        made_there = {
            row.wanted.name: torch.empty(row.wanted.recipe.shape, dtype=row.wanted.dtype, device=row.device)
            for row in rows
        }
        self._found.by_name.update(made_there)
        fillings = list(fillings_of([row.wanted for row in rows], SLOT_BYTES))
        self._ring.expect(max((filling.layout.room_bytes for filling in fillings), default=0))
        wanted = {row.wanted.name: row.wanted for row in rows}
        for filling in fillings:
            yield self._carried(self._ring, filling, wanted, made_there)

    def _cast(self, tensors: Sequence[WantedTensor]) -> Iterator[_Job]:
        """To memory of the CPU in another dtype: through a small slot."""
        ring = Ring(self._reads, is_pinned=False, most_bytes=_CAST_SLOT_BYTES, slots=1)
        memory = _Memory(tensors)
        self._found.by_name.update(memory.tensors)
        wanted = {row.name: row for row in tensors}
        fillings = list(fillings_of(tensors, _CAST_SLOT_BYTES, stay_here=True))
        ring.expect(max((filling.layout.room_bytes for filling in fillings), default=0))
        for filling in fillings:
            yield self._carried(ring, filling, wanted, memory.tensors)

    def _carried(
        self,
        ring: Ring,
        filling: Filling,
        wanted: Mapping[str, WantedTensor],
        targets: Mapping[str, torch.Tensor],
    ) -> _Job:
        names = dict.fromkeys(row.name for row in filling.slices)

        def run() -> int:
            try:
                read_bytes, _ = ring.carry(
                    filling,
                    {name: (targets[name],) for name in names},
                    stream_of,
                    is_direct=not is_cached(self._reads, filling.layout.spans),
                )
            except OffloadError as error:
                whole = wanted.get(error.name or "")
                if whole is not None:
                    made(self._files, whole)  # of a slice; this counts in the whole tensor
                raise
            for row in filling.slices:
                self._advance(row.length * wanted[row.name].dtype.itemsize)
            return read_bytes

        return _Job(filling.position, run)

    def _straight(self, tensors: Sequence[WantedTensor]) -> Iterator[_Job]:
        """To memory of the CPU as they are stored: in their place."""
        for group in _groups(tensors):
            yield _Job(position_of(group[0]), partial(self._read_group, group))

    def _read_group(self, group: Sequence[WantedTensor]) -> int:
        layout = lay_out({row.name: row.recipe for row in group}, {row.name: row.dtype for row in group})
        memory = PageBuffer(layout.room_bytes)
        is_direct = not is_cached(self._reads, layout.spans)
        read_bytes = 0
        for spans in _at_once(layout.spans):
            read_bytes += self._reads.read_spans(spans, memory, direct=is_direct)[0]
        for row in group:
            place = layout.tensors[row.name]
            self._found.by_name[row.name] = tensor_in(memory, place.at, place.dtype, place.shape)
            self._advance(row.nbytes)
        return read_bytes

    def _computed(self, tensors: Sequence[WantedTensor]) -> Iterator[_Job]:
        """To memory of the CPU by a conversion: from views of the files, all that one conversion makes at once."""
        groups: dict[ConverterRun, list[WantedTensor]] = {}
        for row in tensors:
            assert isinstance(row.recipe, Computed)
            groups.setdefault(row.recipe.conversion, []).append(row)
        for group in groups.values():
            yield _Job(position_of(group[0]), partial(self._compute_group, group))

    def _compute_group(self, group: Sequence[WantedTensor]) -> int:
        memory = _Memory(group)
        done: dict[ConverterRun, dict[str, torch.Tensor]] = {}
        for row in group:
            assert isinstance(row.recipe, Computed)
            values = row.recipe.compute(self._files.view, done)
            memory.tensors[row.name].copy_(cast(values, row.dtype, row.name))
            self._advance(row.nbytes)
        self._found.by_name.update(memory.tensors)
        return sum({row.name: row.nbytes for each in group for row in sources_of(each.recipe)}.values())


class _Memory:
    """Memory of the CPU for tensors that are to be made, one after the other in buffers of huge pages.

    Args:
        tensors: which.
    """

    def __init__(self, tensors: Sequence[WantedTensor]) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        for group in _groups(tensors):
            memory = PageBuffer(sum(_room(row) for row in group))
            at = 0
            for row in group:
                self.tensors[row.name] = tensor_in(memory, at, row.dtype, row.recipe.shape)
                at += _room(row)


def _room(row: WantedTensor) -> int:
    """Its bytes, and what is left out so that the next one begins at a multiple of what vector instructions read."""
    return -(-row.nbytes // LINE_BYTES) * LINE_BYTES


def _groups(tensors: Iterable[WantedTensor]) -> Iterator[list[WantedTensor]]:
    """Tensors that share a buffer."""
    group: list[WantedTensor] = []
    group_bytes = 0
    for row in tensors:
        if group and group_bytes + row.nbytes > _BUFFER_BYTES:
            yield group
            group, group_bytes = [], 0
        group.append(row)
        group_bytes += row.nbytes
    if group:
        yield group


def _at_once(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Spans, cut where they are long, as many at a time as an interrupt may wait for."""
    taken: list[Span] = []
    taken_bytes = 0
    for span in spans:
        while span.begin < span.end:
            size_bytes = min(span.end - span.begin, _AT_ONCE_BYTES)
            if taken and taken_bytes + size_bytes > _AT_ONCE_BYTES:
                yield taken
                taken, taken_bytes = [], 0
            taken.append(span._replace(end=span.begin + size_bytes))
            taken_bytes += size_bytes
            span = span._replace(begin=span.begin + size_bytes, at=span.at + size_bytes)
    if taken:
        yield taken
