"""Reading the next blocks of a model from its checkpoint's files while one computes."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final

import torch

from planner.dispatching.offload.reads_ahead import OffloadedBlock
from planner.dispatching.offload.refcount import OffloadedModule, is_capturing
from planner.loading.streaming.accelerators import RingTicket, StagedThere, ToAccelerators
from planner.loading.streaming.between import PagedBetween
from planner.loading.streaming.blocks import BlockHere, BlockThere
from planner.loading.streaming.buffers import BufferPlan
from planner.loading.streaming.caching import CachingChoice, ReadSetting, Way, fixed_share, spare_bytes
from planner.loading.streaming.counters import StreamingCounters, StreamingProgress
from planner.loading.streaming.files import FileReads, ReadableFiles
from planner.loading.streaming.layout import Span
from planner.loading.streaming.reader import Reader
from planner.loading.streaming.ring import ring_bytes, slot_bytes_within
from planner.loading.streaming.ticket import StagedRead, Ticket
from planner.loading.weights import FileWeights

__all__ = ["BlocksAhead"]

# Two are enough: one is read while the other one is full and waits.
_BLOCKS_AHEAD: Final = 2


class _Lane(threading.local):
    """What this thread has asked for in the forward that it is in."""

    def __init__(self) -> None:
        # Forwards of the whole model that have begun and not ended.
        self.forwards: set[object] = set()
        # The block that computes, or did last.
        self.last: str | None = None
        # Blocks whose way is chosen, and reads that are on their way for them.
        self.asked: dict[str, list[tuple[OffloadedModule, weakref.ref[StagedRead | StagedThere]]]] = {}
        # Whether anything was read in this forward.
        self.has_read = False
        # Whether anything was not in the page cache in this forward.
        self.has_missed = False


class BlocksAhead:
    """Reads offloaded blocks ahead, from the first forward on in the model's order, then in the learnt one.

    Args:
        weights: where they rest.
        blocks: the offloaded blocks, in the model's order.
        read: "auto" uses what the page cache has and reads the rest past it, but for a share that will stay there; "cached" and "direct"
            go one way always.
        staging_bytes: a bound on the buffers and the ring; None for two of the largest block, and in the ring for no more than 128 MiB.
        free_bytes: memory that the plan has left for them; None where there is no plan that says so.
        planned_bytes: memory that the plan will yet take; the page cache gets nothing of it.
        files: what is read, by default the files of the weights.
        room_bytes: by accelerator, what blocks may take there together; where that in use and the next one fit, it is sent for.
        cached: names of weights that the plan has memory for in the page cache, so that they are always read through it.
        between: by name of a block, views that stay on the CPU and are looked at behind it: where the system has taken pages, theirs may
            be gone as well, and are read behind the block's.

    Guarantee: outputs are the same as without. Buffers and ring never take more than ``staging_bytes`` (the ring needs 2 MiB);
        what does not fit is a view. In a forked child everything is a view. What goes to accelerators passes the ring, which is
        in pinned memory, and is never a view. A deep copy, or what comes out of a pickle, has a reader of its own.
    """

    def __init__(
        self,
        weights: FileWeights,
        blocks: Sequence[OffloadedBlock],
        *,
        read: ReadSetting = "auto",
        staging_bytes: int | None = None,
        free_bytes: int | None = None,
        planned_bytes: int = 0,
        files: ReadableFiles | None = None,
        room_bytes: Mapping[torch.device, int] = MappingProxyType({}),
        cached: Container[str] = (),
        between: Mapping[str, Sequence[Span]] = MappingProxyType({}),
    ) -> None:
        self._weights = weights
        self._files = FileReads(weights.files) if files is None else files
        served = [block for block in blocks if self.serves(block)]
        bound_bytes = free_bytes if staging_bytes is None else staging_bytes
        if bound_bytes is not None and not all(ToAccelerators.serves(block.device) for block in served):
            bound_bytes //= 2  # the other half is for buffers
        self._there = ToAccelerators(weights, self._files, room_bytes, cached, slot_bytes_within(bound_bytes))
        self._blocks = {block.module_name: self._streamed(block) for block in served}
        there = [row.slot_bytes for row in self._blocks.values() if isinstance(row, BlockThere)]
        self._ring_bytes = ring_bytes(max(there, default=0))
        here = [row for row in self._blocks.values() if isinstance(row, BlockHere)]
        self._plan = BufferPlan.within(
            [layout.room_bytes for row in here for layout in (row.whole, row.made) if layout],
            _less(staging_bytes, self._ring_bytes),
            _less(free_bytes, self._ring_bytes),
        )
        sizes = {name: row.nbytes for name, row in self._blocks.items() if not self._is_cached(row)}
        share = fixed_share(sizes, spare_bytes(planned_bytes)) if read == "auto" else frozenset()
        self._choice = CachingChoice(read, share)
        self._between = {name: PagedBetween(self._files, spans) for name, spans in between.items()}
        self._order = dict(pairwise(self._blocks))
        self._first = next(iter(self._blocks), None)
        self._begin_unused()
        self._hooks.update({block.module_name: block for block in served})

    def _begin_unused(self) -> None:
        # A reader is started when it is needed, and not in a forked child.
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._reader: Reader | None = None
        self._is_closed = False
        self._lane = _Lane()
        self._counters = StreamingCounters()
        # By name; weakly, because a copy of one layer must not take the others along.
        self._hooks: weakref.WeakValueDictionary[str, OffloadedBlock] = weakref.WeakValueDictionary()

    def __getstate__(self) -> dict[str, Any]:
        names = (
            "_weights",
            "_files",
            "_there",
            "_blocks",
            "_ring_bytes",
            "_plan",
            "_choice",
            "_between",
            "_order",
            "_first",
        )
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_unused()

    @property
    def staging_bytes(self) -> int:
        """The bound on the buffers and the ring."""
        return self._plan.size_bytes * self._plan.most + self._ring_bytes

    def progress(self) -> StreamingProgress:
        """What was read so far."""
        ring = self._there.ring
        pinned_bytes = ring.size_bytes if ring.is_pinned else 0
        return replace(self._counters.progress(), ring_bytes=ring.size_bytes, pinned_bytes=pinned_bytes)

    def start(self) -> None:
        """Asks for the first block before the first forward begins, and makes the buffers meanwhile."""
        if self._first is not None:
            self._send_for(None, self._first)
            if self._lane.has_read and self._reader is not None:
                self._reader.make_buffers()

    def serves(self, block: OffloadedBlock) -> bool:
        """Whether a block has weights in the files."""
        return any(name in self._weights.wanted for row in block.needed for name in row.store.names)

    def needing(self, block: OffloadedBlock) -> None:
        """Asks for a block that nobody has asked for; for one that is called alone, looks at the files first.

        Raises:
            OffloadError: a file was written to or cut. Fields: ``name``.
        """
        name, lane = block.module_name, self._lane
        if name not in self._blocks:
            return
        self._hooks[name] = block
        if not lane.forwards:
            self._files.require_same()
        if name not in lane.asked:
            # What was read ahead was for another way through the model, and has its buffers.
            self._drop(lane)
            self._ask(name)

    def computing(self, block: OffloadedBlock) -> None:
        """Learns the order, drops what was guessed wrong, and asks for the next blocks."""
        name, lane = block.module_name, self._lane
        if name not in self._blocks:
            return
        lane.asked.pop(name, None)
        if not lane.forwards:
            return  # one block called alone: nothing would clean up after the next one
        if lane.last is None:
            self._first = name
        else:
            self._order[lane.last] = name
        lane.last = name
        following: list[str] = []
        while len(following) < _BLOCKS_AHEAD:
            name = self._order.get(name, "")
            if name not in self._blocks or name in following or name == lane.last:
                break
            # On an accelerator there is room for one; what comes behind it is asked for when that is in use.
            if following and isinstance(self._blocks[name], BlockThere):
                break
            following.append(name)
        self._drop(lane, following)
        for each in following:
            self._send_for(block, each)

    def sized(self, block: OffloadedBlock, tokens: int) -> None:
        """Nothing: what the cpu runs in short steps is in memory, and not in the files."""

    def passing(self, block: OffloadedBlock) -> None:
        """Nothing, for the same reason."""

    def begin(self, forward: object) -> None:
        """Looks at the files, and asks for the first block.

        Raises:
            OffloadError: a file was written to or cut. Fields: ``name``.
        """
        lane = self._lane
        is_first = not lane.forwards
        lane.forwards.add(forward)
        self._files.require_same()
        if is_first and self._first is not None:
            lane.has_read = lane.has_missed = False
            self._send_for(None, self._first)

    def finish(self, forward: object) -> None:
        """Drops what was read ahead and not used; buffers, too, if nothing was read."""
        lane = self._lane
        lane.forwards.discard(forward)
        if lane.forwards:
            return
        lane.last = None
        self._drop(lane)
        if self._reader is not None and not lane.has_read:
            self._reader.drop_buffers()

    def close(self) -> None:
        """Ends the reader; blocks are views from now on."""
        with self._lock:
            self._is_closed = True
            reader, self._reader = self._reader, None
        if self._process != os.getpid():
            return  # neither reader nor ring are used there, and the ring's lock may be taken
        if reader is not None:
            reader.end()
            reader.join()
        self._there.close()

    def _streamed(self, block: OffloadedBlock) -> BlockHere | BlockThere:
        names = [name for row in block.needed for name in row.store.names]
        if self._there.serves(block.device):
            return self._there.block(names)
        return BlockHere(self._weights, names)

    def _is_cached(self, row: BlockHere | BlockThere) -> bool:
        return isinstance(row, BlockThere) and self._there.is_cached(row)

    def _send_for(self, current: OffloadedBlock | None, name: str) -> None:
        """Asks for a block while another one computes, where that has room."""
        block = self._hooks.get(name)
        if block is None:
            return
        if not isinstance(self._blocks[name], BlockThere) or self._there.has_room(block, current):
            self._ask(name)

    def _ask(self, name: str) -> None:
        """Chooses the way of a block, and has it read where it is not used as it lies in the page cache."""
        lane, block = self._lane, self._hooks.get(name)
        if name in lane.asked or block is None:
            return
        lane.asked[name] = []
        row = self._blocks[name]
        if isinstance(row, BlockThere):
            self._ask_there(name, block, row)
        else:
            self._ask_here(name, block, row)
            self._page_between(name)

    def _page_between(self, name: str) -> None:
        """Has what is looked at behind a block read behind it, unless all was in the page cache so far."""
        paged = self._between.get(name)
        if paged is None or not self._lane.has_missed or self._choice.read == "direct":
            return
        reader = self._running_reader()
        if reader is not None:
            reader.send(paged)

    def _ask_here(self, name: str, block: OffloadedBlock, row: BlockHere) -> None:
        needed = block.needed
        if any(offloaded.is_live or offloaded.staged is not None for offloaded in needed):
            return  # another thread has it, or is about to
        way = self._choice.way(name, self._files, row.spans)
        ticket = Ticket.of(name, row, way, self._plan.size_bytes)
        if ticket is None:
            self._counters.count_cached()
            return
        self._lane.has_missed |= way is not Way.VIEWS
        reader = self._running_reader()
        if reader is None:
            return
        self._lane.has_read |= ticket.layout is not None
        for offloaded in needed:
            self._expect(name, offloaded, StagedRead(ticket, reader, self._weights))
        reader.ask(ticket)

    def _ask_there(self, name: str, block: OffloadedBlock, row: BlockThere) -> None:
        # What another thread has there is shared; the rest must not come from views.
        absent = [each for each in block.needed if not each.is_live and each.staged is None]
        if not absent or block.device is None or is_capturing(block.device) or self._process != os.getpid():
            return
        way = Way.VIEWS if self._is_cached(row) else self._choice.way(name, self._files, row.spans)
        self._lane.has_missed |= way is not Way.VIEWS
        if way is Way.VIEWS:
            self._counters.count_cached()
        ticket = self._there.ticket(
            name,
            row,
            block.device,
            is_direct=way is Way.DIRECT,
            counters=None if way is Way.VIEWS else self._counters,
        )
        for offloaded in absent:
            self._expect(name, offloaded, StagedThere(ticket, self._weights, self._counters))
        reader = self._running_reader()
        if reader is not None:
            reader.send(ticket)

    def _expect(self, name: str, offloaded: OffloadedModule, staged: StagedRead | StagedThere) -> None:
        # Written down first, so that an interrupt leaves nothing behind.
        self._lane.asked[name].append((offloaded, weakref.ref(staged)))
        offloaded.expect(staged)

    def _running_reader(self) -> Reader | None:
        if self._process != os.getpid():
            return None
        with self._lock:
            if self._is_closed:
                return None
            if self._reader is None:
                self._reader = Reader(self._files, self._plan, self._counters)
                # It holds nothing of this object, which may go at any time.
                weakref.finalize(self, self._reader.end).atexit = False
            return self._reader

    @staticmethod
    def _drop(lane: _Lane, kept: Sequence[str] = ()) -> None:
        """Lets go of what was asked for and is not wanted now; of an accelerator's memory before this returns."""
        tickets: list[RingTicket] = []
        for name in [name for name in lane.asked if name not in kept]:
            for row, reference in lane.asked.pop(name):
                staged = reference()
                if isinstance(staged, StagedThere):
                    tickets.append(staged.ticket)
                if staged is not None:
                    row.unstage(staged)
                del staged
        for ticket in tickets:
            ticket.settle()


def _less(bound_bytes: int | None, taken_bytes: int) -> int | None:
    return None if bound_bytes is None else max(0, bound_bytes - taken_bytes)
