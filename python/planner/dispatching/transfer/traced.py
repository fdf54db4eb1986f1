"""Moving arguments in code that is being compiled: as :mod:`planner.dispatching.transfer.move` does, in words that the compiler traces.

Versions of tensors cannot be traced, so what is written in place into a copy is not given back there. What cannot be traced at
all ends the graph, and runs as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from planner.dispatching.transfer.argument_copies import ArgumentCopies, rebuilt
from planner.dispatching.transfer.kinds import INERT, MAPPING, MOVER, RECORD, SEQUENCE, TENSOR, kind_of

__all__ = ["TracedArgumentCopies", "fields_of"]

_ABSENT = object()


class TracedArgumentCopies:
    """What was lent for one call in compiled code; see :class:`planner.dispatching.transfer.argument_copies.ArgumentCopies`.

    Args:
        by_itself: moves an object that has a ``to`` of its own.
    """

    __slots__ = ("by_itself", "handed", "made", "untraced", "watched")

    def __init__(self, by_itself: Callable[..., Any]) -> None:
        self.by_itself = by_itself
        self.untraced = ArgumentCopies()
        self.made: list[tuple[Any, Any]] = []
        self.watched: list[tuple[Any, Any, Any]] = []
        self.handed: list[Any] = []

    def find(self, value: Any) -> Any:
        """What was made for something already; None if nothing was."""
        for mine, made in self.made:
            if mine is value:
                return made
        return None

    def moved(
        self, value: Any, device: torch.device, skip: Container[str], carry: Callable[..., torch.Tensor]
    ) -> Any:
        """A value with its tensors on a device; the value itself where nothing has to move."""
        kind = kind_of(type(value))
        if kind == INERT:
            return value
        found = self.find(value)
        if found is not None:
            return found
        if kind == TENSOR:
            if value.device == device:
                return value
            made: Any = carry(value, device)
            self.made.append((value, made))
            return made
        if kind == MOVER:
            # The compiler does not trace these: the graph ends, and they are moved as anywhere.
            return self.by_itself(value, device, skip, carry, self.untraced)
        items: Any = None
        if kind == SEQUENCE:
            items = [self.moved(item, device, skip, carry) for item in value]
            changed = any(new is not item for new, item in zip(items, value, strict=True))
        else:
            items = {
                key: item if key in skip else self.moved(item, device, skip, carry)
                for key, item in (value.items() if kind == MAPPING else fields_of(value).items())
            }
            has = value if kind == MAPPING else fields_of(value)
            changed = any(new is not has[key] for key, new in items.items())
        if not changed:
            return value
        made = _made(value, kind, items)
        self.made.append((value, made))
        if not isinstance(value, tuple):
            self.watched.append((value, made, items))
        return made

    def write_back(self) -> None:
        """What was set, added or taken away in a container's copy, in the container."""
        if self.untraced.has_copies():
            for value, made in self.made:
                self.untraced.lend(value, made)
            self.untraced.write_back()
        for value, made, items in reversed(self.watched):
            if isinstance(items, list):
                self._return_list(value, list(made), items)
            else:
                self._return_entries(value, made, items)

    def returned(self, output: Any) -> Any:
        """What a block returns, with the caller's own containers in it."""
        if not self.watched:
            return output
        if type(output) in (tuple, list):
            return type(output)([self.returned(part) for part in output])
        for value, made, _ in self.watched:
            if made is output:
                return value
        return output

    def _return_list(self, value: Any, now: list[Any], items: list[Any]) -> None:
        if len(now) != len(items) or any(mine is not its for mine, its in zip(now, items, strict=True)):
            value[:] = [self._original(item) for item in now]

    def _return_entries(self, value: Any, made: Any, items: dict[Any, Any]) -> None:
        is_record = kind_of(type(value)) == RECORD
        now = fields_of(made) if is_record else dict(made)
        for key, item in now.items():
            if items.get(key, _ABSENT) is item:
                continue
            if is_record:
                object.__setattr__(value, key, self._original(item))
            else:
                value[key] = self._original(item)
        for key in items:
            if key in now:
                continue
            if is_record:
                object.__delattr__(value, key)
            else:
                del value[key]

    def _original(self, item: Any) -> Any:
        for mine, made in self.made:
            if made is item:
                return mine
        if type(item) in (tuple, list):
            return type(item)([self._original(part) for part in item])
        if type(item) is dict:
            return {key: self._original(part) for key, part in item.items()}
        return item


def _made(value: Any, kind: int, items: Any) -> Any:
    cls = type(value)
    if kind == SEQUENCE:
        if isinstance(value, tuple):
            return rebuilt(value, items)
        if cls is list:
            return items.copy()
        made = copy.copy(value)
        made[:] = items
        return made
    if cls is dict:
        return {**items}
    if kind == MAPPING and is_dataclass(cls):
        # A model's output: its fields are its items, and those that are None are no items.
        return cls(**items)
    made = copy.copy(value)
    for key, item in items.items():
        if kind == MAPPING:
            made[key] = item
        else:
            object.__setattr__(made, key, item)
    return made


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are set."""
    return {field.name: getattr(value, field.name) for field in fields(value) if hasattr(value, field.name)}
