"""What streaming asks of a checkpoint's open files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from planner.loading.open_files import OpenFiles
from planner.loading.reading import cached_bytes, read_spans
from planner.loading.streaming.layout import Span

__all__ = ["FileReads", "ReadableFiles"]

# More do not read faster from one disk.
_READS_IN_FLIGHT: Final = 2


class ReadableFiles(Protocol):
    """Open files of a checkpoint, by number."""

    def require_same(self) -> None:
        """Compares every file with what it was when it was opened.

        Raises:
            OffloadError: one was written to or cut. Fields: ``name``.
        """

    def cached_bytes(self, file: int, begin: int, end: int) -> tuple[int, int]:
        """Bytes of whole pages that the page cache has, and bytes of whole pages in all."""

    def page_in(self, spans: Sequence[Span]) -> None:
        """Lets the page cache have bytes, where they will stay.

        Raises:
            OffloadError: they cannot be read. Fields: ``name``.
        """

    def read_spans(self, spans: Sequence[Span], memory: Any, *, direct: bool) -> tuple[int, int]:
        """Reads bytes into memory.

        Returns:
            Bytes read, and of these past the page cache.

        Raises:
            OffloadError: they cannot be read, or are not what they were when the file was opened. Fields: ``name``.
        """


class FileReads:
    """The files as the core reads them.

    Args:
        files: the files.
    """

    def __init__(self, files: OpenFiles) -> None:
        self._files = files

    def require_same(self) -> None:
        """As :meth:`ReadableFiles.require_same`."""
        self._files.require_same()

    def cached_bytes(self, file: int, begin: int, end: int) -> tuple[int, int]:
        """As :meth:`ReadableFiles.cached_bytes`."""
        return cached_bytes(self._files.files[file], begin, end)

    def page_in(self, spans: Sequence[Span]) -> None:
        """As :meth:`ReadableFiles.page_in`."""
        for span in spans:
            self._files.files[span.file].page_in(span.begin, span.end)

    def read_spans(self, spans: Sequence[Span], memory: Any, *, direct: bool) -> tuple[int, int]:
        """As :meth:`ReadableFiles.read_spans`."""
        done = read_spans(list(self._files.files), list(spans), memory, direct, _READS_IN_FLIGHT)
        # What was written to while it was read, or since the forward began.
        self._files.require_same({span.file for span in spans})
        return done
