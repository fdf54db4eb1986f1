"""What a command is doing, said on standard error as soon as it takes longer than a second."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from planner.cli.output import write_remark

_PATIENCE_SECONDS: Final = 1.0


@contextmanager
def saying(doing: str) -> Iterator[None]:
    """Says what is being done, if it is not done within a second.

    Args:
        doing: in words, such as "reading the headers of llama".
    """
    timer = threading.Timer(_PATIENCE_SECONDS, write_remark, (f"{doing} …",))
    timer.daemon = True  # an interrupt ends the process without waiting for it
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
