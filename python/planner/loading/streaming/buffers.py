"""Buffers that blocks are read into, one after the other, under a bound."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

from planner import _core

__all__ = ["BufferPlan", "Lease", "PageBuffers"]


class BufferPlan(NamedTuple):
    """How many buffers there may be.

    Args:
        size_bytes: of one.
        count: at most so many.
    """

    size_bytes: int
    count: int

    @classmethod
    def within(cls, rooms_bytes: list[int], staging_bytes: int | None) -> BufferPlan:
        """Buffers for blocks: as large as the largest of which two fit into the bound, or one if no two do.

        Args:
            rooms_bytes: what each block needs.
            staging_bytes: the bound; None for two of the largest.
        """
        rooms = sorted(_whole_pages(size) for size in rooms_bytes if size)
        if not rooms:
            return cls(0, 0)
        if staging_bytes is None:
            return cls(rooms[-1], 2)
        for share in (2, 1):
            fitting = [size for size in rooms if size * share <= staging_bytes]
            if fitting:
                return cls(fitting[-1], staging_bytes // fitting[-1])
        return cls(0, 0)


def _whole_pages(size_bytes: int) -> int:
    """As :class:`PageBuffer` rounds."""
    return -(-size_bytes // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES


_HUGE_PAGE_BYTES = 2 << 20


class Lease(weakref.ref[memoryview]):
    """Notices when the last tensor in a buffer is gone.

    Args:
        memory: the buffer's memory, made for one use of it; whatever lies in it holds this object.
        ended: called with this lease then, in any thread, also in the middle of anything.
        buffer: whose memory it is.
    """

    __slots__ = ("buffer",)

    buffer: _core.PageBuffer

    def __new__(
        cls, memory: memoryview, ended: Callable[[Lease], None], buffer: _core.PageBuffer
    ) -> Lease:
        made = super().__new__(cls, memory, ended)  # type: ignore[arg-type]
        made.buffer = buffer
        return made

    def __init__(
        self, memory: memoryview, ended: Callable[[Lease], None], buffer: _core.PageBuffer
    ) -> None:
        super().__init__(memory, ended)  # type: ignore[arg-type]


class PageBuffers:
    """Buffers of huge pages, for one thread.

    Args:
        plan: how many there may be.
        ended: called when nobody has a tensor in a buffer any more, in any thread; :meth:`take_back` has to follow here.

    Guarantee: a buffer is lent again only after that.
    """

    def __init__(self, plan: BufferPlan, ended: Callable[[Lease], None]) -> None:
        self.plan = plan
        self._ended = ended
        self._free: list[_core.PageBuffer] = []
        # Those that are lent; a reference that nobody holds notices nothing.
        self._leases: dict[int, Lease] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes of all buffers."""
        return (len(self._free) + len(self._leases)) * self.plan.size_bytes

    @property
    def huge_bytes(self) -> int:
        """Bytes of all buffers that are in huge pages indeed."""
        buffers = [*self._free, *(lease.buffer for lease in self._leases.values())]
        return sum(buffer.huge_bytes() for buffer in buffers)

    def lend(self, room_bytes: int) -> memoryview | None:
        """Memory for one block, until the last tensor in it is gone; None if there is none now.

        Raises:
            MemoryError: the system has none to give.
        """
        if room_bytes > self.plan.size_bytes:
            return None
        if not self._free:
            if len(self._leases) >= self.plan.count:
                return None
            self._free.append(_core.PageBuffer(self.plan.size_bytes))
        buffer = self._free.pop()
        memory = memoryview(buffer)  # type: ignore[arg-type]
        lease = Lease(memory, self._ended, buffer)
        self._leases[id(lease)] = lease
        return memory

    def take_back(self, lease: Lease) -> None:
        """A buffer is free again."""
        del self._leases[id(lease)]
        self._free.append(lease.buffer)

    def make(self) -> None:
        """Makes what may be made, before it is needed.

        Raises:
            MemoryError: the system has none to give.
        """
        while len(self._free) + len(self._leases) < min(self.plan.count, 2):
            self._free.append(_core.PageBuffer(self.plan.size_bytes))

    def drop_free(self) -> None:
        """Gives memory back that nobody uses."""
        self._free.clear()
