"""Buffers that blocks are read into, one after the other, under a bound."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from planner.loading.reading import PageBuffer

__all__ = ["BufferPlan", "Lease", "PageBuffers"]


_HUGE_PAGE_BYTES: Final = 2 << 20


class BufferPlan(NamedTuple):
    """How many buffers there may be.

    Args:
        size_bytes: of one.
        most: how many there may be.
    """

    size_bytes: int
    most: int

    @classmethod
    def within(
        cls, rooms_bytes: list[int], staging_bytes: int | None, free_bytes: int | None = None
    ) -> BufferPlan:
        """Buffers for blocks: as large as the largest of which two fit into the bound, or one if no two do.

        Args:
            rooms_bytes: what each block needs.
            staging_bytes: the bound; None for two of the largest.
            free_bytes: of these, no more than so much.
        """
        rooms = sorted(_whole_pages(size) for size in rooms_bytes if size)
        if not rooms:
            return cls(0, 0)
        if staging_bytes is None:
            if free_bytes is None or 2 * rooms[-1] <= free_bytes:
                return cls(rooms[-1], 2)
            staging_bytes = free_bytes
        for share in (2, 1):
            fitting = [size for size in rooms if size * share <= staging_bytes]
            if fitting:
                return cls(fitting[-1], staging_bytes // fitting[-1])
        return cls(0, 0)


def _whole_pages(size_bytes: int) -> int:
    """As :class:`PageBuffer` rounds."""
    return -(-size_bytes // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES


Lease: TypeAlias = weakref.ref[memoryview]
"""A buffer's memory, lent for one block: whatever lies in it holds that very object, so this notices when the last is gone."""


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
        self._free: list[PageBuffer] = []
        # By lease, which has no hash: what is lent. A reference that nobody holds notices nothing.
        self._lent: dict[int, tuple[Lease, PageBuffer]] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes of all buffers."""
        return (len(self._free) + len(self._lent)) * self.plan.size_bytes

    @property
    def huge_bytes(self) -> int:
        """Bytes of all buffers that are in huge pages indeed."""
        buffers = [*self._free, *(buffer for _, buffer in self._lent.values())]
        return sum(buffer.huge_bytes() for buffer in buffers)

    def lend(self, room_bytes: int) -> memoryview | None:
        """Memory for one block, until the last tensor in it is gone; None if there is none now.

        Raises:
            MemoryError: the system has none to give.
        """
        if room_bytes > self.plan.size_bytes:
            return None
        if not self._free:
            if len(self._lent) >= self.plan.most:
                return None
            self._free.append(PageBuffer(self.plan.size_bytes))
        buffer = self._free.pop()
        memory = memoryview(buffer)
        lease = weakref.ref(memory, self._ended)
        self._lent[id(lease)] = (lease, buffer)
        return memory

    def take_back(self, lease: Lease) -> None:
        """A buffer is free again."""
        _, buffer = self._lent.pop(id(lease))
        self._free.append(buffer)

    def make(self) -> None:
        """Makes what may be made, before it is needed.

        Raises:
            MemoryError: the system has none to give.
        """
        while len(self._free) + len(self._lent) < min(self.plan.most, 2):
            self._free.append(PageBuffer(self.plan.size_bytes))

    def drop_free(self) -> None:
        """Gives memory back that nobody uses."""
        self._free.clear()
