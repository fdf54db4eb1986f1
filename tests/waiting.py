"""Waiting for what another thread is about to do."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable


def is_soon(is_so: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether something is so within a while: a thread that reads ahead ends what it has begun before it lets go of it."""
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.01)
        gc.collect()
    return is_so()
