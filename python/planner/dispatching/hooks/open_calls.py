"""Forwards that were begun by calling a hook's ``pre_forward``, and have not ended."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch

from planner.dispatching.interrupts import end_again
from planner.dispatching.offload.refcount import Use
from planner.dispatching.transfer.argument_copies import ArgumentCopies

__all__ = ["OpenCall", "end_since", "last_of", "mark"]


@dataclass(frozen=True, slots=True, eq=False)
class OpenCall:
    """One forward.

    Args:
        hook: whose.
        back: where the result goes; None leaves it where it is.
        use: of the weights.
        argument_copies: arguments that were copied.
    """

    hook: Any
    back: torch.device | None
    use: Use
    argument_copies: ArgumentCopies

    def open(self) -> None:
        """Writes it down, for this thread."""
        _open.calls.append(self)

    def end(self) -> None:
        """Gives back what was lent, and lets the weights go."""
        try:
            with end_again(self.use.end):
                try:
                    self.argument_copies.write_back()
                finally:
                    self.use.end()
        finally:
            # By identity, because torch.compile cannot compare calls with each other.
            _open.calls = [call for call in _open.calls if call is not self]


class _Open(threading.local):
    """Of this thread."""

    def __init__(self) -> None:
        self.calls: list[OpenCall] = []


_open = _Open()


def last_of(hook: Any) -> OpenCall | None:
    """A hook's last call that is open in this thread."""
    return next((call for call in reversed(_open.calls) if call.hook is hook), None)


def mark() -> int:
    """How many calls are open in this thread."""
    return len(_open.calls)


def end_since(count: int) -> None:
    """Ends the calls that were opened since there were so many: what has opened them has raised, and will not end them."""
    while len(_open.calls) > count:
        _open.calls[-1].end()
