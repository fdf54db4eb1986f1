"""The page cache is asked for what a first forward will look at, in its order, while other things go on."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from planner.errors import CheckpointError, OffloadError
from planner.loading.streaming.caching import is_cached
from planner.loading.streaming.files import FileReads
from planner.loading.streaming.layout import Span
from planner.loading.weights import WantedTensor, sources_of

__all__ = ["page_ahead", "spans_of"]

logger = logging.getLogger(__name__)

# Asked for at once, because between two this thread waits for its turn; there it may be stopped.
_CHUNK_BYTES: Final = 512 << 20
# How long the interpreter's end waits for a request that is under way.
_END_SECONDS: Final = 10.0


def spans_of(wanted: Iterable[WantedTensor]) -> list[Span]:
    """Bytes of files that tensors are, in the order of these; what follows each other in a file is one span."""
    found: list[Span] = []
    for row in wanted:
        for source in sources_of(row.recipe):
            last = found[-1] if found else None
            if last is not None and (last.file, last.end) == (source.file, source.begin):
                found[-1] = last._replace(end=source.end)
            elif source.nbytes:
                found.append(Span(source.file, source.begin, source.end, 0))
    return found


def page_ahead(owner: object, files: FileReads, spans: Sequence[Span], most_bytes: int) -> None:
    """Has the page cache read bytes in the background, which a page fault at a time takes half as long again.

    Args:
        owner: when it goes, nothing more is read.
        files: where from.
        spans: what is read, in this order.
        most_bytes: how much of it.

    Cost: some microseconds where nearly all is in the page cache, and no thread then.
    """
    try:
        if most_bytes <= 0 or not spans or is_cached(files, spans):
            return
        paging = _Paging(files, list(_chunks(spans, most_bytes)))
        weakref.finalize(owner, paging.stop).atexit = False
        _running.add(paging)
        paging.thread.start()
    except (CheckpointError, OffloadError, RuntimeError) as error:
        # The model is loaded; it will read what it looks at, and say what has become of a file.
        logger.info("nothing is read ahead of the first forward: %s", error)


def _chunks(spans: Sequence[Span], most_bytes: int) -> Iterator[Span]:
    left_bytes = most_bytes
    for span in spans:
        for begin in range(span.begin, span.end, _CHUNK_BYTES):
            end = min(span.end, begin + _CHUNK_BYTES, begin + left_bytes)
            if end <= begin:
                return
            yield span._replace(begin=begin, end=end)
            left_bytes -= end - begin


class _Paging:
    """One pass over spans."""

    def __init__(self, files: FileReads, spans: Sequence[Span]) -> None:
        self._files = files
        self._spans = spans
        self._is_stopped = False
        self.thread = threading.Thread(target=self._run, name="planner-paging", daemon=True)

    def stop(self) -> None:
        """Ends it after what it asks for now."""
        self._is_stopped = True

    def _run(self) -> None:
        for span in self._spans:
            if self._is_stopped:
                break
            try:
                if not is_cached(self._files, [span]):
                    self._files.page_in([span])
            except (CheckpointError, OffloadError) as error:
                logger.info("no more is read ahead of the first forward: %s", error)
                break
        _running.discard(self)


_running: set[_Paging] = set()


@atexit.register
def _end_all() -> None:
    """A thread that comes back from native code after the interpreter's end cannot go anywhere."""
    for paging in list(_running):
        paging.stop()
        if paging.thread.is_alive():
            paging.thread.join(_END_SECONDS)
