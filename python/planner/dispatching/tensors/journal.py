"""Changes to dicts that can be taken back, all of them, in reverse order."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

__all__ = ["Journal"]

_ABSENT = object()


class Journal:
    """Writes to modules' dicts and remembers what was there.

    Guarantee: after :meth:`roll_back`, every dict holds the objects it held before.
    """

    def __init__(self) -> None:
        # Each written down before the change that it undoes: an interrupt between the two leaves one that does nothing.
        self._undo: list[Callable[[], object]] = []

    def set(self, table: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Sets a key."""
        before = table[key] if key in table else _ABSENT  # noqa: SIM401 (TorchScript's has no `get`)
        self._undo.append(partial(_restore, table, key, before))
        table[key] = value

    def remove(self, table: MutableMapping[str, Any], key: str) -> None:
        """Removes a key, if it is there."""
        if key in table:
            self._undo.append(partial(_restore, table, key, table[key]))
            del table[key]

    def put_back(self, table: MutableMapping[str, Any], key: str, ours: Any, *before: Any) -> None:
        """What was there before ours, if anything was; what others have put there since stays."""
        if table.get(key) is not ours:
            return
        if before:
            self.set(table, key, *before)
        else:
            self.remove(table, key)

    def assign(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute of an object."""
        self._undo.append(partial(setattr, owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def move(self, parameter: Any, made: Any) -> None:
        """Gives a parameter the values and the gradient of another one, so that who holds it, holds these."""
        self._undo.append(partial(_give, parameter, parameter.data, parameter.grad))
        _give(parameter, made.data, made.grad)

    def require_gradient(self, parameter: Any, requires_grad: bool) -> None:
        """Freezes or thaws a parameter."""
        if parameter.requires_grad != requires_grad:
            self._undo.append(partial(parameter.requires_grad_, parameter.requires_grad))
            parameter.requires_grad_(requires_grad)

    def roll_back(self) -> None:
        """Puts everything back."""
        while self._undo:
            self._undo.pop()()


def _restore(table: MutableMapping[str, Any], key: str, before: Any) -> None:
    if before is not _ABSENT:
        table[key] = before
    else:
        table.pop(key, None)


def _give(parameter: Any, data: Any, gradient: Any) -> None:
    # In this order, because torch takes a gradient only where its parameter lies.
    parameter.data = data
    parameter.grad = gradient
