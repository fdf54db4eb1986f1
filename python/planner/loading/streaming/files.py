"""What streaming asks of a checkpoint's open files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import torch

from planner.errors import CheckpointError
from planner.loading.open_files import OpenFiles, tensor_in
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

    def copy_spans(self, spans: Sequence[Span], memory: Any) -> None:
        """Copies bytes that the page cache has into memory, from where they are mapped, which takes half of the time of reading them.

        Raises:
            OffloadError: they are not what they were when the file was opened. Fields: ``name``.
        """


class FileReads:
    """The files as the core reads them.

    Args:
        files: the files.

    Guarantee: a file whose handle was closed, because there are too many, and whose name another file has by now, is used from its
        mapping, which is still that of the first.
    """

    def __init__(self, files: OpenFiles) -> None:
        self._files = files

    def require_same(self) -> None:
        """As :meth:`ReadableFiles.require_same`."""
        self._files.require_same()

    def cached_bytes(self, file: int, begin: int, end: int) -> tuple[int, int]:
        """As :meth:`ReadableFiles.cached_bytes`; what has only a mapping counts as cached, so that it is used where it lies."""
        try:
            return cached_bytes(self._files.files[file], begin, end)
        except CheckpointError as error:
            self._require_mapped(file, error)
            return end - begin, end - begin

    def page_in(self, spans: Sequence[Span]) -> None:
        """As :meth:`ReadableFiles.page_in`."""
        for span in spans:
            try:
                self._files.files[span.file].page_in(span.begin, span.end)
            except CheckpointError as error:
                self._require_mapped(span.file, error)

    def read_spans(self, spans: Sequence[Span], memory: Any, *, direct: bool) -> tuple[int, int]:
        """As :meth:`ReadableFiles.read_spans`."""
        files = list(self._files.files)
        try:
            done = read_spans(files, list(spans), memory, direct, _READS_IN_FLIGHT)
        except CheckpointError as error:
            if len(spans) > 1:
                parts = [self.read_spans([span], memory, direct=direct) for span in spans]
                return sum(read for read, _ in parts), sum(past for _, past in parts)
            (span,) = spans
            self._require_mapped(span.file, error)
        else:
            # What was written to while it was read, or since the forward began.
            self._files.require_same({span.file for span in spans})
            return done
        size_bytes = span.end - span.begin
        with memoryview(memory) as target, memoryview(files[span.file].map()) as source:
            target.cast("B")[span.at : span.at + size_bytes] = source[span.begin : span.end]
        return size_bytes, 0

    def copy_spans(self, spans: Sequence[Span], memory: Any) -> None:
        """As :meth:`ReadableFiles.copy_spans`."""
        target = torch.frombuffer(memory, dtype=torch.uint8)
        for span in spans:
            mapping = self._files.files[span.file].map()
            source = tensor_in(mapping, span.begin, torch.uint8, (span.end - span.begin,))
            target[span.at : span.at + len(source)].copy_(source)
        self._files.require_same({span.file for span in spans})

    def _require_mapped(self, file: int, error: CheckpointError) -> None:
        """Raises, unless no more is wrong than that the name is another file's."""
        self._files.require_same([file])
        if self._files.files[file].is_open:
            raise error
