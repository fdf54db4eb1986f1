"""What stays in memory between the blocks that are streamed: views of files, whose pages the system may take at any time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from planner.errors import CheckpointError, OffloadError
from planner.loading.streaming.caching import is_cached
from planner.loading.streaming.files import ReadableFiles
from planner.loading.streaming.layout import Span

__all__ = ["PagedBetween", "spans_between"]

logger = logging.getLogger(__name__)


class PagedBetween:
    """Views that a forward looks at after a block; a ticket of the reader that can be sent again and again.

    Args:
        files: where they lie.
        spans: their bytes.
    """

    __slots__ = ("__weakref__", "_files", "_spans")

    def __init__(self, files: ReadableFiles, spans: Sequence[Span]) -> None:
        self._files = files
        self._spans = spans

    def read_ahead(self) -> None:
        """Lets the page cache have what it lacks, because a page fault at a time takes several times as long."""
        try:
            if not is_cached(self._files, self._spans):
                self._files.page_in(self._spans)
        except (CheckpointError, OffloadError) as error:
            # Nobody waits for it: the next forward looks at the files, and says what has become of one.
            logger.info("what stays on the CPU is not read ahead: %s", error)


def spans_between(
    blocks: Iterable[str], staying: Iterable[tuple[str, Sequence[Span]]]
) -> Mapping[str, Sequence[Span]]:
    """What stays, by the streamed block behind which a forward looks at it, as far as the model's order tells.

    Args:
        blocks: names of streamed blocks.
        staying: names of tensors in the model's order, with the bytes of those that stay, and none for others.

    Returns:
        By name of a block; what comes before the first block is left out, because a forward has looked at it by the time the first is read.

    Example:
        >>> spans_between(["h.0"], [("wte.weight", [Span(0, 0, 8, 0)]), ("h.0.weight", []), ("head.weight", [Span(0, 8, 9, 0)])])
        {'h.0': [Span(file=0, begin=8, end=9, at=0)]}
    """
    names = set(blocks)
    found: dict[str, list[Span]] = {}
    last: str | None = None
    for name, spans in staying:
        parent = name
        while parent and parent not in names:
            parent = parent.rpartition(".")[0]
        if parent:
            last = parent
        elif last is not None and spans:
            found.setdefault(last, []).extend(spans)
    return found
