"""Blocks that rest in files and run on accelerators: read into the ring, copied on a side stream, into new memory each time."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch

from planner.dispatching.offload.prefetch import Prefetcher
from planner.dispatching.offload.reads_ahead import OffloadedBlock
from planner.dispatching.offload.refcount import is_capturing
from planner.dispatching.offload.store import OffloadStore
from planner.dispatching.offload.weight_files import PrefixedDataset
from planner.dispatching.tensors.copies import copied
from planner.errors import OffloadError
from planner.loading.streaming.blocks import BlockThere
from planner.loading.streaming.counters import StreamingCounters
from planner.loading.streaming.files import ReadableFiles
from planner.loading.streaming.ring import SLOT_BYTES, Ring, on_stream, stream_of
from planner.loading.weights import FileWeights, made

__all__ = ["RingTicket", "StagedThere", "ToAccelerators"]

logger = logging.getLogger(__name__)


class ToAccelerators:
    """What the blocks of a model share on their way to accelerators: the ring, side streams, and the room there.

    Args:
        weights: where the blocks rest.
        files: what is read.
        room_bytes: by device, what blocks may take there together: that in use and the next one.
        cached: names of weights that the page cache has memory for, so that they are read through it.
        slot_bytes: the most that a slot of the ring may have.
    """

    def __init__(
        self,
        weights: FileWeights,
        files: ReadableFiles,
        room_bytes: Mapping[torch.device, int],
        cached: Container[str] = (),
        slot_bytes: int = SLOT_BYTES,
    ) -> None:
        self._slot_bytes = slot_bytes
        self.weights = weights
        self._files = files
        self._room_bytes = dict(room_bytes)
        self._cached = cached
        self._begin_unused()

    def _begin_unused(self) -> None:
        self.ring = Ring(self._files, most_bytes=self._slot_bytes)
        self._streams: dict[torch.device, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        names = ("weights", "_files", "_room_bytes", "_cached", "_slot_bytes")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_unused()

    @staticmethod
    def serves(device: torch.device | None) -> bool:
        """Whether blocks that run on a device are brought there."""
        return device is not None and device.type not in ("cpu", "meta")

    def block(self, names: Sequence[str]) -> BlockThere:
        """What is brought for a block with some weights."""
        return BlockThere(self.weights, names, self.ring.most_bytes)

    def is_cached(self, block: BlockThere) -> bool:
        """Whether the plan has memory for a block's bytes in the page cache."""
        return all(name in self._cached for name in block.tensors)

    def has_room(self, block: OffloadedBlock, beside: OffloadedBlock | None) -> bool:
        """Whether a block may be sent for while another one computes."""
        device = block.device
        if device is None or is_capturing(device):
            return False  # the block itself will say that this cannot be
        used_bytes = beside.resting_bytes() if beside is not None and beside.device == device else 0
        return used_bytes + block.resting_bytes() <= self._room_bytes.get(device, 0)

    def ticket(
        self,
        name: str,
        block: BlockThere,
        device: torch.device,
        *,
        is_direct: bool,
        counters: StreamingCounters | None,
    ) -> RingTicket:
        """A ticket for one use of a block. ``counters`` count a read, None where the page cache has it."""
        return RingTicket(name, block, device, self, is_direct=is_direct, counters=counters)

    def stream(self, device: torch.device) -> Any:
        """The side stream of a device; None if it has no streams."""
        if device not in self._streams:
            can = Prefetcher.can_serve(device)
            self._streams[device] = torch.get_device_module(device).Stream(device=device) if can else None
        return self._streams[device]

    def has_none_left(self, device: torch.device) -> None:
        """Lets nothing be read ahead for a device any more, whose memory is used up."""
        self._room_bytes[device] = 0

    def close(self) -> None:
        """Gives the memory of the ring back."""
        self.ring.drop()
        self._streams.clear()


class RingTicket:
    """One use of a block: whoever comes first reads it, the reader or the one who waits.

    Args:
        name: the block's.
        block: what is read.
        device: where it goes.
        way: the ring, and the stream.
        is_direct: whether it is read past the page cache.
        counters: what was read is counted there; None where it is in the page cache.

    Guarantee: the last who may want it drops it, and with it the memory on the device.
    """

    __slots__ = (
        "__weakref__",
        "_block",
        "_counters",
        "_error",
        "_event",
        "_has_failed",
        "_is_direct",
        "_name",
        "_process",
        "_tensors",
        "_turn",
        "_wanted_by",
        "_way",
        "device",
    )

    def __init__(
        self,
        name: str,
        block: BlockThere,
        device: torch.device,
        way: ToAccelerators,
        *,
        is_direct: bool,
        counters: StreamingCounters | None,
    ) -> None:
        self.device = device
        self._name = name
        self._block = block
        self._way = way
        self._is_direct = is_direct
        self._counters = counters
        self._process = os.getpid()
        self._wanted_by: list[weakref.ref[StagedThere]] = []
        self._turn = threading.Lock()
        self._has_failed = False
        self._tensors: dict[str, torch.Tensor] | None = None
        self._event: Any = None
        self._error: BaseException | None = None

    def want(self, staged: StagedThere) -> None:
        """Somebody will take the tensors; said before the ticket is sent."""
        self._wanted_by.append(weakref.ref(staged))

    def settle(self) -> None:
        """Waits until a read that nobody wants any more has let go of the device's memory; at most for one filling of the ring."""
        if self._process != os.getpid() or self._is_wanted():
            return
        with self._turn:
            self._tensors = None

    def _is_wanted(self) -> bool:
        return any(reference() is not None for reference in self._wanted_by)

    def read_ahead(self) -> None:
        """Reads it, if nobody does; for the reader's thread, so errors are kept for the one who waits."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            if self._tensors is None and not self._has_failed:
                self._carry()
        except torch.OutOfMemoryError as error:
            # Whoever waits has the room of the block before, and says it if that does not do.
            logger.info("'%s' cannot be read ahead: %s", self._name, error)
            self._way.has_none_left(self.device)
        except BaseException as error:  # noqa: BLE001 (raised where the block is waited for)
            self._error, self._has_failed = error.with_traceback(None), True
        finally:
            self._turn.release()

    def arrived(self) -> Mapping[str, torch.Tensor] | None:
        """The tensors, by first name, as soon as this thread's stream may use them; None if they could not be read.

        Raises:
            OffloadError: they could not be read; of the reader's thread, for the first who asks. Fields: ``name``.
            torch.OutOfMemoryError: there is no room for them.
        """
        if self._process != os.getpid():
            return None  # a forked child has no such thread
        # A lock that `with` takes is given back wherever an interrupt arrives; one that a flag stands for is not.
        with self._turn:
            if self._tensors is None and not self._has_failed:
                self._carry()
            error, self._error = self._error, None
        if error is not None and not isinstance(error, OffloadError):
            raise OffloadError(
                f"'{self._name}' could not be read ahead: {error!r}", name=self._name
            ) from error
        if error is not None:
            raise error
        if self._event is not None:
            torch.get_device_module(self.device).current_stream(self.device).wait_event(self._event)
        return self._tensors

    def _carry(self) -> None:
        stream = self._way.stream(self.device)
        with torch.inference_mode(False), torch.no_grad():
            with on_stream(stream, self.device):
                tensors = {
                    name: torch.empty(row.recipe.shape, dtype=row.dtype, device=self.device)
                    for name, row in self._block.tensors.items()
                }
            targets = {name: (tensor,) for name, tensor in tensors.items()}
            done: list[tuple[int, int]] = []
            try:
                for filling in self._block.fillings:
                    if not self._is_wanted():
                        return  # a wrong guess: what is really next needs its room
                    done.append(
                        self._way.ring.carry(filling, targets, lambda _: stream, is_direct=self._is_direct)
                    )
            except OffloadError as error:
                whole = self._block.tensors.get(error.name or "")
                if whole is not None:
                    made(self._way.weights.files, whole)  # of a slice; this counts in the whole tensor
                raise
        if stream is not None:
            self._event = stream.record_event()
        self._tensors = tensors
        if self._counters is not None:
            self._counters.count_read(sum(row[0] for row in done), sum(row[1] for row in done))


class StagedThere:
    """What one offloaded module takes of a block that goes to an accelerator.

    Args:
        ticket: the block's.
        weights: what it reads; where the module's weights come from elsewhere by then, nothing is taken.
        counters: waiting is counted there.
    """

    __slots__ = ("__weakref__", "_counters", "_weights", "origins", "ticket")

    def __init__(self, ticket: RingTicket, weights: FileWeights, counters: StreamingCounters) -> None:
        self.ticket = ticket
        ticket.want(self)
        self._weights = weights
        self._counters = counters
        self.origins: Sequence[torch.Tensor] = ()

    def take(self, device: torch.device, store: OffloadStore) -> Sequence[torch.Tensor] | None:
        """The tensors, once they are there; None if they are not what is wanted now."""
        source = store.source
        is_from_files = isinstance(source, PrefixedDataset) and source.dataset is self._weights
        if device != self.ticket.device or not is_from_files:
            return None
        began = time.monotonic()
        tensors = self.ticket.arrived()
        self._counters.count_wait(time.monotonic() - began)
        if tensors is None:
            return None
        stream = stream_of(device)
        found: list[torch.Tensor] = []
        origins: list[torch.Tensor] = []
        for index, name in enumerate(store.names):
            wanted = self._weights.wanted.get(name)
            if wanted is None or wanted.name not in tensors or store.placeholders[index].kept is not None:
                # What was written before is in memory, and no file has it.
                origins.append(store.value(index))
                found.append(copied(origins[-1], device))
                continue
            found.append(tensors[wanted.name])
            if stream is not None:
                # Freed memory goes back to the stream that it was taken from; it must not be handed out before we are done.
                found[-1].record_stream(stream)
            # Modules that share a tensor know it by what it was made from.
            is_shared = bool(store.shares) and store.shares[index] is not None
            origins.append(store.value(index) if is_shared else found[-1])
        self.origins = origins
        return found
