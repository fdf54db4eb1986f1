"""Changes to dicts that can be taken back, all of them, in reverse order."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

__all__ = ["Journal"]

_ABSENT = object()


class Journal:
    """Writes to modules' dicts and remembers what was there.

    Guarantee: after :meth:`roll_back`, every dict holds the objects it held before.
    """

    def __init__(self) -> None:
        self._before: list[tuple[MutableMapping[str, Any], str, Any]] = []
        self._moved: list[tuple[Any, Any, Any]] = []
        self._marked: list[tuple[Any, bool]] = []

    def set(self, table: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Sets a key."""
        before = table[key] if key in table else _ABSENT  # noqa: SIM401 (TorchScript's has no `get`)
        self._before.append((table, key, before))
        table[key] = value

    def remove(self, table: MutableMapping[str, Any], key: str) -> None:
        """Removes a key, if it is there."""
        if key in table:
            self._before.append((table, key, table[key]))
            del table[key]

    def move(self, parameter: Any, made: Any) -> None:
        """Gives a parameter the values and the gradient of another one, so that who holds it, holds these."""
        self._moved.append((parameter, parameter.data, parameter.grad))
        _give(parameter, made.data, made.grad)

    def require_gradient(self, parameter: Any, requires_grad: bool) -> None:
        """Freezes or thaws a parameter."""
        if parameter.requires_grad != requires_grad:
            self._marked.append((parameter, parameter.requires_grad))
            parameter.requires_grad_(requires_grad)

    def roll_back(self) -> None:
        """Puts everything back."""
        while self._before:
            table, key, value = self._before.pop()
            if value is not _ABSENT:
                table[key] = value
            else:
                table.pop(key, None)
        while self._moved:
            _give(*self._moved.pop())
        while self._marked:
            parameter, requires_grad = self._marked.pop()
            parameter.requires_grad_(requires_grad)


def _give(parameter: Any, data: Any, gradient: Any) -> None:
    # In this order, because torch takes a gradient only where its parameter lies.
    parameter.data = data
    parameter.grad = gradient
