"""One read of a block that somebody will wait for, and what each of its offloaded modules takes of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import torch

from planner.dispatching.offload.store import OffloadStore
from planner.dispatching.offload.weight_files import PrefixedDataset
from planner.errors import OffloadError
from planner.loading.streaming.blocks import BlockHere
from planner.loading.streaming.caching import Way
from planner.loading.streaming.layout import BlockLayout, Span
from planner.loading.streaming.making import placed_tensor
from planner.loading.weights import FileWeights

__all__ = ["StagedRead", "Ticket"]


class Ticket:
    """One read of a block.

    Args:
        block: the block's name.
        layout: what is read into a buffer; None if nothing is.
        is_direct: whether it is read past the page cache.
        paged: what the page cache is to have before that.

    Guarantee: where the last one who may want it drops it, so does the reader.
    """

    __slots__ = (
        "__weakref__",
        "_error",
        "_gate",
        "_is_done",
        "_memory",
        "block",
        "is_direct",
        "layout",
        "paged",
    )

    def __init__(
        self, block: str, layout: BlockLayout | None, *, is_direct: bool, paged: Sequence[Span] = ()
    ) -> None:
        self.block = block
        self.paged = paged
        self.layout = layout
        self.is_direct = is_direct
        # Closed until the read has ended. No Event: an interrupt in one of its methods leaves its own lock taken, and whoever sets it waits.
        self._gate = threading.Lock()
        self._gate.acquire()
        self._is_done = False
        self._memory: memoryview | None = None
        self._error: BaseException | None = None

    @classmethod
    def of(cls, name: str, block: BlockHere, way: Way, most_bytes: int) -> Ticket | None:
        """What of a block is to be read, and how; None where it is used as it lies in the page cache.

        Args:
            most_bytes: of a buffer; what does not fit is used from the page cache.
        """
        layout = block.whole if way is Way.DIRECT else block.made
        if layout is not None and layout.room_bytes > most_bytes:
            layout = None
        paged = block.spans if way is Way.CACHED else ()
        if not block.spans or (layout is None and not paged):
            return None
        return cls(name, layout, is_direct=way is Way.DIRECT, paged=paged)

    @property
    def is_done(self) -> bool:
        """Whether the read has ended, in whatever way."""
        return self._is_done

    def fill(self, memory: memoryview) -> None:
        """The read has ended well; called by the one who reads."""
        self._memory = memory
        self._end()

    def leave(self, error: BaseException | None = None) -> None:
        """There is nothing in a buffer: the files' views are to be used, or an error to be raised; called by the one who reads."""
        self._error = error
        self._end()

    def _end(self) -> None:
        if not self._is_done:
            self._is_done = True
            self._gate.release()

    def wait(self, seconds: float) -> bool:
        """Waits, and says whether the read has ended."""
        # An interrupt between the two lines closes the gate for others, who see by the flag, after their seconds, that it has ended.
        if self._gate.acquire(timeout=seconds):
            self._gate.release()
        return self._is_done

    def memory(self) -> memoryview | None:
        """What was read, once it is done; None where views are to be used.

        Raises:
            OffloadError: it could not be read; the first time it is asked, then there are the views. Fields: ``name``.
        """
        error, self._error = self._error, None
        if error is None:
            return self._memory
        if isinstance(error, OffloadError):
            raise error
        raise OffloadError(f"'{self.block}' could not be read ahead: {error!r}", name=self.block) from error


class Reads(Protocol):
    """Who reads tickets."""

    def wait(self, ticket: Ticket) -> None:
        """Waits until a ticket is done; not for a reader that has ended."""


class StagedRead:
    """What one offloaded module takes of a block's read.

    Args:
        ticket: the read.
        reader: who reads it.
        weights: what it reads; where the module's weights come from elsewhere by then, nothing is taken.
    """

    __slots__ = ("__weakref__", "_reader", "_ticket", "_weights", "origins")

    def __init__(self, ticket: Ticket, reader: Reads, weights: FileWeights) -> None:
        self._ticket = ticket
        self._reader = reader
        self._weights = weights
        self.origins: Sequence[torch.Tensor] = ()

    def take(self, device: torch.device, store: OffloadStore) -> Sequence[torch.Tensor] | None:
        """The tensors, once they are read; None where the files' views are to be used.

        Raises:
            OffloadError: they could not be read. Fields: ``name``.
        """
        source = store.source
        if device.type != "cpu" or not (
            isinstance(source, PrefixedDataset) and source.dataset is self._weights
        ):
            return None
        self._reader.wait(self._ticket)
        memory, layout = self._ticket.memory(), self._ticket.layout
        if memory is None or layout is None:
            return None
        places = layout.tensors
        found: list[torch.Tensor] = []
        origins: list[torch.Tensor] = []
        for index, name in enumerate(store.names):
            place = places.get(name)
            if place is None or store.placeholders[index].kept is not None:
                # What was written before is in memory, and no file has it.
                origins.append(store.value(index))
                found.append(origins[-1])
                continue
            found.append(placed_tensor(memory, place))
            # Modules that share a tensor know it by what it was made from.
            is_shared = bool(store.shares) and store.shares[index] is not None
            origins.append(store.value(index) if is_shared else found[-1])
        self.origins = origins
        return found
