"""How far a load is: told to a callable, or drawn on a terminal where it takes longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Advance", "progress_of"]

Advance = Callable[[int], None]
"""Is told of bytes that are done since it was told last."""

_PATIENCE_SECONDS: Final = 1.0


@contextmanager
def progress_of(
    told: Callable[[int, int], object] | None, total_bytes: int, done_bytes: int = 0
) -> Iterator[Advance]:
    """What a load tells of its progress.

    Args:
        told: gets bytes done and bytes in all; None for a bar on a terminal after a second, and nothing elsewhere.
        total_bytes: bytes in all.
        done_bytes: of these, what was done before.
    """
    if told is not None:

        def tell(more_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += more_bytes
            told(done_bytes, total_bytes)

        yield tell
    elif sys.stderr.isatty():
        with _Bar(total_bytes, done_bytes) as bar:
            yield bar.advance
    else:
        yield _nothing


def _nothing(_more_bytes: int) -> None:
    pass


class _Bar:
    """A bar on standard error that appears only if the load takes longer than a second."""

    def __init__(self, total_bytes: int, done_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._done_bytes = done_bytes
        self._began = time.monotonic()
        self._drawn: Progress | None = None

    def __enter__(self) -> _Bar:
        return self

    def advance(self, more_bytes: int) -> None:
        self._done_bytes += more_bytes
        if self._drawn is None and time.monotonic() - self._began > _PATIENCE_SECONDS:
            self._drawn = _start(self._total_bytes)
        if self._drawn is not None:
            self._drawn.update(self._drawn.task_ids[0], completed=self._done_bytes)

    def __exit__(self, *_: object) -> None:
        if self._drawn is not None:
            self._drawn.stop()


def _start(total_bytes: int) -> Progress:
    from rich.console import Console  # few loads take so long
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        "loading",
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    drawn = Progress(*columns, console=Console(stderr=True), transient=True)
    drawn.add_task("loading", total=total_bytes)
    drawn.start()
    return drawn
