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

__all__ = ["joined", "page_ahead", "spans_of"]

logger = logging.getLogger(__name__)

# Asked for at once, because between two this thread waits for its turn; there it may be stopped.
_CHUNK_BYTES: Final = 512 << 20
# How long the interpreter's end waits for a request that is under way.
_END_SECONDS: Final = 10.0


def spans_of(wanted: WantedTensor) -> list[Span]:
    """Bytes of files that a tensor is."""
    return [Span(row.file, row.begin, row.end, 0) for row in sources_of(wanted.recipe) if row.nbytes]


def joined(spans: Iterable[Span]) -> list[Span]:
    """The same in the same order, where what follows each other in a file is one span."""
    found: list[Span] = []
    for span in spans:
        last = found[-1] if found else None
        if last is not None and (last.file, last.end) == (span.file, span.begin):
            found[-1] = last._replace(end=span.end)
        else:
            found.append(span)
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
        if most_bytes <= 0 or not spans or _Paging.has_ended or is_cached(files, spans):
            return
        paging = _Paging(files, list(_chunks(spans, most_bytes)))
        weakref.finalize(owner, paging.stop).atexit = False
        _running.add(paging)
        paging.start()
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


class _Paging(threading.Thread):
    """One pass over spans."""

    # Behind the interpreter's end for threads, where other functions may still load.
    has_ended = False

    def __init__(self, files: FileReads, spans: Sequence[Span]) -> None:
        super().__init__(name="planner-paging", daemon=True)
        self._work: tuple[FileReads, Sequence[Span]] | None = (files, spans)
        self._is_to_stop = False

    def stop(self) -> None:
        """Ends it after what it asks for now."""
        self._is_to_stop = True

    def run(self) -> None:
        """The thread."""
        if self._work is not None:
            _page(self, *self._work)
        # The owner goes on to know this.
        self._work = None

    @property
    def is_to_stop(self) -> bool:
        """Whether its owner is gone."""
        return self._is_to_stop


def _page(paging: _Paging, files: FileReads, spans: Sequence[Span]) -> None:
    for span in spans:
        if paging.is_to_stop:
            break
        try:
            if not is_cached(files, [span]):
                files.page_in([span])
        except Exception as error:  # noqa: BLE001 (nobody waits for it; the forward meets what is wrong itself)
            logger.info("no more is read ahead of the first forward: %r", error)
            break


# Weak: one that cannot be started is nobody's.
_running: weakref.WeakSet[_Paging] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """A thread that comes back from native code after the interpreter's end cannot go anywhere."""
    _Paging.has_ended = True
    for paging in list(_running):
        paging.stop()
        if paging.is_alive():
            paging.join(_END_SECONDS)
