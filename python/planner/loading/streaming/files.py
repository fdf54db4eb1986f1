"""What streaming asks of open files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from planner.loading.streaming.layout import Span

__all__ = ["ReadableFiles"]


class ReadableFiles(Protocol):
    """Open files of a checkpoint, by number."""

    def require_same(self) -> None:
        """Compares every file with what it was when it was opened.

        Raises:
            OffloadError: one was written to or cut. Fields: ``name``.
        """

    def cached_bytes(self, file: int, begin: int, end: int) -> tuple[int, int]:
        """Bytes of whole pages that the page cache has, and bytes of whole pages in all."""

    def read_spans(self, spans: Sequence[Span], memory: memoryview, *, direct: bool) -> tuple[int, int]:
        """Reads bytes into memory.

        Returns:
            Bytes read, and of these past the page cache.

        Raises:
            OffloadError: they cannot be read. Fields: ``name``.
        """
