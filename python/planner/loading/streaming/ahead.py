"""Reading the next blocks of a model from its checkpoint's files while one computes."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from planner.dispatching.offload.reads_ahead import OffloadedBlock
from planner.dispatching.offload.refcount import OffloadedModule
from planner.loading.streaming.buffers import BufferPlan
from planner.loading.streaming.caching import CachingChoice, ReadSetting, Way, fixed_share, spare_bytes
from planner.loading.streaming.counters import StreamingCounters, StreamingProgress
from planner.loading.streaming.files import FileReads, ReadableFiles
from planner.loading.streaming.layout import BlockLayout, lay_out
from planner.loading.streaming.reader import Reader
from planner.loading.streaming.ticket import StagedRead, Ticket
from planner.loading.weights import FileWeights

__all__ = ["BlocksAhead"]

# Two are enough: one is read while the other one is full and waits.
_BLOCKS_AHEAD: Final = 2


class _StreamedBlock:
    """What is read for one block.

    Args:
        whole: all of it.
        made: only what is not in the files as it is wanted; the rest are views. None where there is no such thing.
    """

    __slots__ = ("made", "whole")

    def __init__(self, weights: FileWeights, names: Sequence[str]) -> None:
        wanted = {name: weights.wanted[name] for name in names if name in weights.wanted}
        recipes = {name: row.recipe for name, row in wanted.items()}
        dtypes = {name: row.dtype for name, row in wanted.items()}
        self.whole = lay_out(recipes, dtypes)
        is_made = {name: recipe for name, recipe in recipes.items() if not wanted[name].is_view}
        self.made = lay_out(is_made, dtypes) if is_made else None


class _Lane(threading.local):
    """What this thread has asked for in the forward that it is in."""

    def __init__(self) -> None:
        # Forwards of the whole model that have begun and not ended.
        self.forwards: set[object] = set()
        # The block that computes, or did last.
        self.last: str | None = None
        # Blocks whose way is chosen, and reads that are on their way for them.
        self.asked: dict[str, list[tuple[OffloadedModule, weakref.ref[StagedRead]]]] = {}
        # Whether anything was read in this forward.
        self.has_read = False


class BlocksAhead:
    """Reads offloaded blocks that run on the CPU ahead, from the first forward on in the model's order, then in the learnt one.

    Args:
        weights: where they rest.
        blocks: the offloaded blocks, in the model's order; those that run elsewhere are left alone.
        read: "auto" uses what the page cache has and reads the rest past it, but for a share that will stay there; "cached" and "direct"
            go one way always.
        staging_bytes: a bound on the buffers; None for two of the largest block.
        free_bytes: memory that the plan has left for them; None where there is no plan that says so.
        planned_bytes: memory that the plan will yet take; the page cache gets nothing of it.
        files: what is read, by default the files of the weights.

    Guarantee: outputs are the same as without. Buffers never take more than ``staging_bytes``; what does not fit is a view. In a forked
        child everything is a view. A deep copy, or what comes out of a pickle, has a reader of its own.
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
    ) -> None:
        self._weights = weights
        self._files = FileReads(weights.files) if files is None else files
        served = [block for block in blocks if self.serves(block)]
        self._blocks = {block.module_name: self._streamed(block) for block in served}
        self._plan = BufferPlan.within(
            [
                layout.room_bytes
                for row in self._blocks.values()
                for layout in (row.whole, row.made)
                if layout
            ],
            staging_bytes,
            free_bytes,
        )
        sizes = {name: row.whole.read_bytes for name, row in self._blocks.items()}
        share = fixed_share(sizes, spare_bytes(planned_bytes)) if read == "auto" else frozenset()
        self._choice = CachingChoice(read, share)
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
        names = ("_weights", "_files", "_blocks", "_plan", "_choice", "_order", "_first")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_unused()

    @property
    def staging_bytes(self) -> int:
        """The bound on the buffers."""
        return self._plan.size_bytes * self._plan.most

    def progress(self) -> StreamingProgress:
        """What was read so far."""
        return self._counters.progress()

    def start(self) -> None:
        """Asks for the first block before the first forward begins, and makes the buffers meanwhile."""
        if self._first is not None:
            self._ask(self._first)
            if self._lane.asked.get(self._first) and self._reader is not None:
                self._reader.make_buffers()

    def serves(self, block: OffloadedBlock) -> bool:
        """Whether a block runs on the CPU and has weights in the files."""
        if block.device is not None and block.device.type != "cpu":
            return False
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
            following.append(name)
        self._drop(lane, following)
        for each in following:
            self._ask(each)

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
            lane.has_read = False
            self._ask(self._first)

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
        if reader is not None and self._process == os.getpid():
            reader.end()
            reader.join()

    def _streamed(self, block: OffloadedBlock) -> _StreamedBlock:
        return _StreamedBlock(self._weights, [name for row in block.needed for name in row.store.names])

    def _ask(self, name: str) -> None:
        """Chooses the way of a block, and has it read where it is not used as it lies in the page cache."""
        lane, block = self._lane, self._hooks.get(name)
        if name in lane.asked or block is None:
            return
        needed = block.needed
        lane.asked[name] = []
        if any(row.is_live or row.staged is not None for row in needed):
            return  # another thread has it, or is about to
        layout, is_direct = self._layout_now(name)
        if layout is None or not layout.spans:
            self._counters.count_cached()
            return
        reader = self._running_reader() if layout.room_bytes <= self._plan.size_bytes else None
        if reader is None:
            return
        lane.has_read = True
        ticket = Ticket(name, layout, is_direct=is_direct)
        for row in needed:
            staged = StagedRead(ticket, reader, self._weights)
            # Written down first, so that an interrupt leaves nothing behind.
            lane.asked[name].append((row, weakref.ref(staged)))
            row.expect(staged)
        reader.ask(ticket)

    def _layout_now(self, name: str) -> tuple[BlockLayout | None, bool]:
        """What of a block is to be read now, if anything, and whether past the page cache."""
        block = self._blocks[name]
        way = self._choice.way(name, self._files, block.whole.spans)
        if way is Way.VIEWS:
            return block.made, False
        return block.whole, way is Way.DIRECT

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
        """Lets go of what was asked for and is not wanted now."""
        for name in [name for name in lane.asked if name not in kept]:
            for row, reference in lane.asked.pop(name):
                staged = reference()
                if staged is not None:
                    row.unstage(staged)
