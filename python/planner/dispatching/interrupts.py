"""Ending once more what an interrupt may have kept from ending."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["end_again"]


class end_again:  # noqa: N801 (read as a verb, like contextlib's)
    """Calls a function when the block raises, which has called it itself by then: an interrupt may have come just before.

    The block ends with ``finally: end()``. This cannot take that over: an interrupt that arrives where ``__exit__`` begins would
    leave nothing to call it.

    Args:
        end: called a second time, does nothing, or what was left undone.
    """

    __slots__ = ("end",)

    def __init__(self, end: Callable[[], object]) -> None:
        self.end = end

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.end()
