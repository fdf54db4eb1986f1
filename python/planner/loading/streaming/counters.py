"""What reading blocks from files has come to."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace

__all__ = ["StreamingCounters", "StreamingProgress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingProgress:
    """What streaming has done so far.

    Args:
        streamed_bytes: read from files into buffers.
        direct_bytes: of these, past the page cache.
        waited_seconds: how long forwards have waited for reads.
        blocks_from_cache: uses of a block whose bytes the page cache had.
        blocks_from_disk: uses of a block that was read.
        huge_bytes: of buffers, what is in huge pages indeed; reading into ordinary ones is slower.
        buffer_bytes: of buffers in all.
        ring_bytes: of the slots that blocks pass on their way to accelerators.
        pinned_bytes: of these, what is pinned memory indeed; copies from ordinary memory are slower.
    """

    streamed_bytes: int = 0
    direct_bytes: int = 0
    waited_seconds: float = 0.0
    blocks_from_cache: int = 0
    blocks_from_disk: int = 0
    huge_bytes: int = 0
    buffer_bytes: int = 0
    ring_bytes: int = 0
    pinned_bytes: int = 0


class StreamingCounters:
    """Counts for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._progress = StreamingProgress()

    def _alone(self) -> threading.Lock:
        """A lock; in a forked child a new one, because the reader, which is not there, may hold the other one."""
        if self._process != os.getpid():
            self._lock, self._process = threading.Lock(), os.getpid()
        return self._lock

    def progress(self) -> StreamingProgress:
        """Until now."""
        return self._progress

    def count_cached(self) -> None:
        """A block was used where the page cache has it."""
        with self._alone():
            self._progress = replace(self._progress, blocks_from_cache=self._progress.blocks_from_cache + 1)

    def count_read(self, read_bytes: int, direct_bytes: int) -> None:
        """A block was read."""
        with self._alone():
            before = self._progress
            self._progress = replace(
                before,
                streamed_bytes=before.streamed_bytes + read_bytes,
                direct_bytes=before.direct_bytes + direct_bytes,
                blocks_from_disk=before.blocks_from_disk + 1,
            )

    def count_wait(self, seconds: float) -> None:
        """A forward waited for a read."""
        with self._alone():
            self._progress = replace(self._progress, waited_seconds=self._progress.waited_seconds + seconds)

    def note_buffers(self, huge_bytes: int, buffer_bytes: int) -> None:
        """Buffers were made or dropped."""
        with self._alone():
            self._progress = replace(self._progress, huge_bytes=huge_bytes, buffer_bytes=buffer_bytes)
