"""From files to accelerators: a ring of two slots in pinned memory, one being filled while the other one is copied from."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch

from planner.errors import OffloadError
from planner.loading.casting import can_overflow, lost_numbers, overflow_words
from planner.loading.streaming.files import ReadableFiles
from planner.loading.streaming.fillings import Filling, Slice
from planner.loading.streaming.layout import PAGE_BYTES
from planner.loading.streaming.making import make_tensors

__all__ = [
    "NO_PINNED_MEMORY",
    "SLOT_BYTES",
    "Ring",
    "on_stream",
    "ring_bytes",
    "slot_bytes_within",
    "stream_of",
]

logger = logging.getLogger(__name__)

# Reads of this size are as fast as larger ones, and copies to the device likewise. A slot has one page more, and pinned memory comes in
# powers of two.
SLOT_BYTES: Final = (64 << 20) - PAGE_BYTES
# Less than that, and half of the time nothing is read.
_LEAST_SLOT_BYTES: Final = (1 << 20) - PAGE_BYTES
_SLOTS: Final = 2

NO_PINNED_MEMORY: Final = (
    "there is no pinned memory: what goes to accelerators is copied from ordinary memory, which is slower"
)

StreamOf = Callable[[torch.device], Any]


def slot_bytes_within(bound_bytes: int | None) -> int:
    """The most that a slot may have where a ring is to keep a bound; None for a slot that is large enough."""
    if bound_bytes is None:
        return SLOT_BYTES
    return max(_LEAST_SLOT_BYTES, min(SLOT_BYTES, bound_bytes // _SLOTS - PAGE_BYTES))


def ring_bytes(slot_bytes: int) -> int:
    """What a ring takes with slots that hold so much."""
    return _SLOTS * (slot_bytes + PAGE_BYTES) if slot_bytes else 0


def stream_of(device: torch.device) -> Any:
    """The stream that this thread works on, on a device; None where there is no such thing."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    return module.current_stream(device) if hasattr(module, "Stream") else None


def on_stream(stream: Any, device: torch.device) -> AbstractContextManager[Any]:
    """Lets this thread work on a stream; on None, as it does."""
    return nullcontext() if stream is None else torch.get_device_module(device).stream(stream)


class Ring:
    """Slots of host memory that everything passes on its way from files to devices.

    Args:
        files: where from.
        is_pinned: whether pinned memory is asked for, which copies run from while the host goes on.
        most_bytes: of a slot, but for what has to be computed as a whole.
        slots: how many; one is enough where nothing goes on meanwhile.

    Guarantee: a slot is filled again only after the copies from it have ended. Used by several threads, one passes after the other.
    """

    def __init__(
        self,
        files: ReadableFiles,
        *,
        is_pinned: bool = True,
        most_bytes: int = SLOT_BYTES,
        slots: int = _SLOTS,
    ) -> None:
        self.most_bytes = most_bytes
        self._files = files
        self._slots = [_Slot(is_pinned=is_pinned) for _ in range(slots)]
        self._lock = threading.Lock()
        self._room_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the slots now."""
        return sum(slot.size_bytes for slot in self._slots)

    @property
    def is_pinned(self) -> bool:
        """Whether they are in pinned memory, as far as there are any."""
        return all(slot.is_pinned for slot in self._slots)

    def expect(self, room_bytes: int) -> None:
        """Lets slots be at least so large when they are made, because making them takes long."""
        self._room_bytes = max(self._room_bytes, room_bytes)

    def carry(
        self,
        filling: Filling,
        targets: Mapping[str, Sequence[torch.Tensor]],
        stream_of: StreamOf,
        *,
        is_direct: bool,
    ) -> tuple[int, int]:
        """Fills a slot, and starts copying from it.

        Args:
            filling: what is read.
            targets: by tensor's name, where its values go; the values are there when the streams have come so far.
            stream_of: by device, the stream that copies run on; None where there are no streams, and they have run when this returns.
            is_direct: whether files are read past the page cache.

        Returns:
            Bytes read, and of these past the page cache.

        Raises:
            OffloadError: the files cannot be read, or a cast would make finite numbers infinite. Fields: ``name``.
            MemoryError: no memory for the slot.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            slot = self._slots.pop(0)
            self._slots.append(slot)
            memory = slot.refilled(filling.layout.room_bytes, self._room_bytes)
            done = self._files.read_spans(filling.layout.spans, memory, direct=is_direct)
            _make(filling, memory)
            streams: dict[torch.device, Any] = {}
            try:
                for number, row in enumerate(filling.slices):
                    at = filling.layout.tensors[str(number)].at
                    for target in targets[row.name]:
                        device = target.device
                        if device not in streams:
                            streams[device] = stream_of(device)
                        _send(
                            row, slot.bytes_at(at, row.length * row.dtype.itemsize), target, streams[device]
                        )
            finally:
                # Also after half of it: who fills the slot next has to wait for that.
                slot.copied_on([stream for stream in streams.values() if stream is not None])
            return done

    def wait(self) -> None:
        """Waits until all copies from it have ended."""
        with self._lock:
            for slot in self._slots:
                slot.wait()

    def drop(self) -> None:
        """Gives its memory back, after the copies from it have ended."""
        with self._lock:
            for slot in self._slots:
                slot.drop()


class _Slot:
    """Host memory that files are read into, and that copies to devices run from."""

    def __init__(self, *, is_pinned: bool) -> None:
        self.is_pinned = is_pinned
        self._whole: torch.Tensor | None = None
        self._memory: memoryview | None = None
        self._first = 0
        self._events: list[Any] = []

    @property
    def size_bytes(self) -> int:
        return 0 if self._whole is None else self._whole.numel()

    def refilled(self, room_bytes: int, expected_bytes: int) -> memoryview:
        """Its memory, so much at least, once nothing is copied from it any more; what is made anew has what is expected."""
        self.wait()
        if self._memory is None or len(self._memory) < room_bytes:
            self.drop()
            self._make(max(room_bytes, expected_bytes))
        assert self._memory is not None
        return self._memory

    def bytes_at(self, at: int, count: int) -> torch.Tensor:
        """Some of its bytes as a tensor that is known to be pinned."""
        assert self._whole is not None
        begin = self._first + at
        return self._whole[begin : begin + count]

    def copied_on(self, streams: Sequence[Any]) -> None:
        """Copies from it were started."""
        self._events = [stream.record_event() for stream in streams]

    def wait(self) -> None:
        """Waits for the copies from it."""
        for event in self._events:
            event.synchronize()
        self._events = []

    def drop(self) -> None:
        """Gives the memory back."""
        self.wait()
        self._whole = self._memory = None

    def _make(self, room_bytes: int) -> None:
        # One page more, because direct reading wants whole pages.
        size_bytes = room_bytes + PAGE_BYTES
        whole = None
        if self.is_pinned:
            try:
                whole = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                logger.info("no pinned memory to read into: %s", error)
                self.is_pinned = False
        if whole is None:
            whole = torch.empty(size_bytes, dtype=torch.uint8)
        self._whole = whole
        self._first = -whole.data_ptr() % PAGE_BYTES
        # torch lends its memory to nobody but numpy; the tensor outlives this, because both go together.
        lent = (ctypes.c_char * room_bytes).from_address(whole.data_ptr() + self._first)
        self._memory = memoryview(lent).cast("B")


def _make(filling: Filling, memory: memoryview) -> None:
    """Casts and computes what a filling makes in its slot."""
    try:
        make_tensors(filling.layout, memory)
    except OffloadError as error:
        # Slices are known by their number there.
        if error.name is None or not error.name.isdecimal():
            raise
        row = filling.slices[int(error.name)]
        words = str(error).replace(f"'{error.name}'", f"'{row.name}'")
        raise OffloadError(words, name=row.name) from None


def _send(row: Slice, found: torch.Tensor, target: torch.Tensor, stream: Any) -> None:
    """Starts one slice on its way into a tensor."""
    flat = target.view(-1)[row.first : row.first + row.length]
    with on_stream(stream, target.device):
        if row.dtype == target.dtype:
            flat.view(torch.uint8).copy_(found, non_blocking=stream is not None)
        elif target.device.type == "cpu":
            _cast(row, found.view(row.dtype), flat)
        else:
            # Fewer bytes cross, and what is wider there is the same number.
            narrow = torch.empty(row.length, dtype=row.dtype, device=target.device)
            narrow.view(torch.uint8).copy_(found, non_blocking=stream is not None)
            flat.copy_(narrow)


def _cast(row: Slice, values: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(values)
    if can_overflow(values.dtype, target.dtype):
        lost = lost_numbers(values, target)
        if lost:
            raise OffloadError(overflow_words(row.name, lost, values.dtype, target.dtype), name=row.name)
