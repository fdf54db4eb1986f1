"""Which way a block is read: where the page cache has it, through the page cache, or past it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Final, Literal, TypeAlias

from planner.devices.detect import free_host_memory
from planner.loading.streaming.files import ReadableFiles
from planner.loading.streaming.layout import Span

__all__ = ["CachingChoice", "ReadSetting", "Way", "fixed_share", "is_cached", "spare_bytes"]

ReadSetting: TypeAlias = Literal["auto", "cached", "direct"]

_NEARLY_ALL: Final = 0.95
# Asking about every page of a cached block takes 0.6 ms; neighbours come and go together.
_WINDOW_BYTES: Final = 256 << 10
_WINDOWS: Final = 24
# Of free memory, what is left to everybody else.
_LEFT_FREE: Final = 1 / 8
# What was read through the page cache and is gone again so often is not read through it any more: there is no room.
_TRIES: Final = 2


class Way(Enum):
    """How a block's bytes are had."""

    VIEWS = "views of the page cache"
    CACHED = "read through the page cache"
    DIRECT = "read past the page cache"


class CachingChoice:
    """Chooses the way of each block, each time.

    Args:
        read: "cached" never goes past the page cache, "direct" always; "auto" looks where the bytes are.
        share: blocks that "auto" reads through the page cache, because they will stay there.
    """

    def __init__(self, read: ReadSetting, share: frozenset[str]) -> None:
        self.read = read
        self.share = share
        self._tries: dict[str, int] = {}

    def way(self, name: str, files: ReadableFiles, spans: Sequence[Span]) -> Way:
        """The way of one block now.

        Cost: some microseconds where nothing is cached, about a tenth of a millisecond where all is.
        """
        if self.read == "direct":
            return Way.DIRECT
        if is_cached(files, spans):
            return Way.VIEWS
        if self.read == "cached":
            return Way.CACHED
        tries = self._tries.get(name, 0)
        if name in self.share and tries < _TRIES:
            self._tries[name] = tries + 1
            return Way.CACHED
        return Way.DIRECT


def is_cached(files: ReadableFiles, spans: Sequence[Span]) -> bool:
    """Whether nearly all of some bytes are in the page cache."""
    there = asked = 0
    for span in _windows(spans):
        found, wanted = files.cached_bytes(span.file, span.begin, span.end)
        there += found
        asked += wanted
    return there >= _NEARLY_ALL * asked


def _windows(spans: Sequence[Span]) -> Iterator[Span]:
    """All spans where they are small, else pieces of them at equal distances."""
    whole_bytes = sum(span.end - span.begin for span in spans)
    if whole_bytes <= 2 * _WINDOWS * _WINDOW_BYTES:
        yield from spans
        return
    step_bytes = whole_bytes // _WINDOWS
    # How far the next window is from where a span begins.
    ahead_bytes = 0
    for span in spans:
        begin = span.begin + ahead_bytes
        while begin < span.end:
            yield span._replace(begin=begin, end=min(begin + _WINDOW_BYTES, span.end))
            begin += step_bytes
        ahead_bytes = begin - span.end


def spare_bytes(planned_bytes: int) -> int:
    """What machine and cgroup can spare for the page cache.

    Args:
        planned_bytes: what will yet be taken of it.
    """
    free_bytes = free_host_memory().free_bytes
    return max(0, int(free_bytes * (1 - _LEFT_FREE)) - planned_bytes)


def fixed_share(sizes_bytes: Mapping[str, int], spare_bytes: int) -> frozenset[str]:
    """Blocks that fit into spare memory together, spread evenly over their order.

    Example:
        >>> sorted(fixed_share({"a": 2, "b": 2, "c": 2, "d": 2}, 5))
        ['b', 'd']
    """
    whole_bytes = sum(sizes_bytes.values())
    if whole_bytes <= spare_bytes:
        return frozenset(sizes_bytes)
    chosen: set[str] = set()
    due_bytes, taken_bytes = 0.0, 0
    for name, size_bytes in sizes_bytes.items():
        due_bytes += size_bytes * spare_bytes / whole_bytes
        if taken_bytes + size_bytes <= due_bytes:
            chosen.add(name)
            taken_bytes += size_bytes
    return frozenset(chosen)
