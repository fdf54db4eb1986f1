"""Moving what is handed to a module to the device where it runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable
from dataclasses import fields
from typing import Any

import torch

from planner.dispatching.tensors.contents import Contents, attributes_of, bare_copy, contents_of, write
from planner.dispatching.transfer.argument_copies import ArgumentCopies, rebuilt
from planner.dispatching.transfer.kinds import INERT, MAPPING, MOVER, RECORD, SEQUENCE, TENSOR, kind_of
from planner.dispatching.transfer.traced import TracedArgumentCopies, fields_of

__all__ = ["find_device", "is_elsewhere", "moved", "new_argument_copies"]

Carry = Callable[[torch.Tensor, torch.device], torch.Tensor]

# Their items are all that they hold.
_PLAIN = (tuple, list, dict)


def is_elsewhere(
    value: Any, device: torch.device | None, skip: Container[str] = (), seen: set[int] | None = None
) -> bool:
    """Whether some tensor in a value lies on another device.

    Args:
        value: anything; tensors are looked for in tuples, lists, mappings and dataclasses.
        device: the device in question.
        skip: keys of mappings that are passed over.
        seen: containers that need no second look; added to.
    """
    kind = kind_of(type(value))
    if kind == INERT:
        return False
    if kind == TENSOR:
        return bool(value.device != device)
    if kind == MOVER:
        return bool(getattr(value, "device", None) != device)
    if seen is None:
        seen = set()
    elif id(value) in seen:
        return False
    seen.add(id(value))
    if kind == SEQUENCE and any(is_elsewhere(item, device, skip, seen) for item in value):
        return True
    if kind == MAPPING and any(
        key not in skip and is_elsewhere(item, device, skip, seen) for key, item in value.items()
    ):
        return True
    if type(value) in _PLAIN:
        return False
    if torch.compiler.is_compiling():
        return kind == RECORD and any(
            is_elsewhere(item, device, skip, seen) for item in fields_of(value).values()
        )
    passed = skip if kind == MAPPING else ()
    return any(
        name not in passed and is_elsewhere(item, device, skip, seen)
        for name, item in attributes_of(value).items()
    )


def moved(
    value: Any,
    device: torch.device,
    skip: Container[str],
    carry: Carry,
    argument_copies: ArgumentCopies | TracedArgumentCopies | None = None,
) -> Any:
    """A value with its tensors on a device; the value itself where nothing has to move.

    Args:
        value: anything; tensors are looked for in tuples, lists, mappings and dataclasses.
        device: where to.
        skip: keys of mappings whose values stay as they are.
        carry: moves one tensor.
        argument_copies: what has been made for this call so far; added to.

    Guarantee: no container is changed; where something moves, there is a new one of the same class around it.
    """
    if argument_copies is None:
        argument_copies = new_argument_copies()
    if isinstance(argument_copies, TracedArgumentCopies):
        return argument_copies.moved(value, device, skip, carry)
    return _Moving(device, skip, carry, argument_copies).moved(value)


def new_argument_copies() -> ArgumentCopies | TracedArgumentCopies:
    """For one call."""
    return TracedArgumentCopies(_moved_by_itself) if torch.compiler.is_compiling() else ArgumentCopies()


def _moved_by_itself(
    value: Any, device: torch.device, skip: Container[str], carry: Carry, argument_copies: ArgumentCopies
) -> Any:
    return _Moving(device, skip, carry, argument_copies).moved(value)


class _Moving:
    """One move of some values."""

    __slots__ = ("argument_copies", "carry", "device", "skip")

    def __init__(
        self, device: torch.device, skip: Container[str], carry: Carry, argument_copies: ArgumentCopies
    ) -> None:
        self.device = device
        self.skip = skip
        self.carry = carry
        self.argument_copies = argument_copies

    def moved(self, value: Any) -> Any:
        kind = kind_of(type(value))
        if kind == INERT:
            return value
        if kind == TENSOR:
            return value if value.device == self.device else self.carry(value, self.device)
        made = self.argument_copies.find(value)
        if made is not None:
            return made
        if not is_elsewhere(value, self.device, self.skip):
            return value
        if kind == MOVER:
            return self._by_itself(value)
        if isinstance(value, tuple):
            made = rebuilt(value, [self.moved(item) for item in value])
            # A list inside may lead back here.
            return self.argument_copies.find(value) or self._lent(value, made)
        if kind == MAPPING and not hasattr(value, "__setitem__"):
            return self._lent(value, self._constructed(value, value))
        return self._container(value, kind)

    def _lent(self, value: Any, made: Any) -> Any:
        self.argument_copies.lend(value, made)
        return made

    def _container(self, value: Any, kind: int) -> Any:
        held = contents_of(value)
        made = bare_copy(value)
        # Before what is inside, which may lead back here.
        self.argument_copies.lend(value, made)
        items: Any = held.items
        if isinstance(items, list):
            items = [self.moved(item) for item in items]
        elif items is not None:
            items = {key: item if key in self.skip else self.moved(item) for key, item in items.items()}
        passed = self.skip if kind == MAPPING else ()
        attributes = {
            name: item if name in passed else self.moved(item) for name, item in held.attributes.items()
        }
        write(made, contents_of(made), Contents(items, attributes))
        if kind == MAPPING and items is None and self._is_left(made):
            # Its items are in no dict or list of its own: through its methods.
            made = self._lent(value, self._constructed(value, made))
            self.argument_copies.watch_mapping(value, made)
            return made
        self.argument_copies.watch(value, made, held)
        return made

    def _is_left(self, made: Any) -> bool:
        return any(
            key not in self.skip and is_elsewhere(item, self.device, self.skip) for key, item in made.items()
        )

    def _constructed(self, value: Any, items: Any) -> Any:
        moved = {key: item if key in self.skip else self.moved(item) for key, item in items.items()}
        return type(value)(moved)

    def _by_itself(self, value: Any) -> Any:
        """An object that knows how to move itself, in a copy."""
        twin = _own_copy(value)
        made = twin.to(self.device)
        # Some `to` methods change their object and return nothing.
        made = twin if made is None else made
        if made is twin and _is_unchanged(value, made):
            return value
        self._pair(value, made)
        return made

    def _pair(self, value: Any, made: Any) -> Any:
        """Writes down what an object's own `to` has made of what it holds, place by place.

        Returns:
            What shall be in that place: `to` may have made two copies of one tensor.
        """
        if value is made or type(value) is not type(made):
            return made
        known = self.argument_copies.find(value)
        kind = kind_of(type(value))
        if known is not None:
            return known if kind != TENSOR or known.device == made.device else made
        if kind == TENSOR:
            if value.shape == made.shape:
                self.argument_copies.watch_tensor(value, made)
        elif isinstance(value, tuple):
            self._lent(value, made)
            for its, new in zip(value, made, strict=False):
                self._pair(its, new)
        elif kind != INERT:
            held, has = contents_of(value), contents_of(made)
            self.argument_copies.lend(value, made)
            write(
                made,
                has,
                Contents(self._paired(held.items, has.items), self._paired(held.attributes, has.attributes)),
            )
            self.argument_copies.watch(value, made, held)
        return made

    def _paired(self, held: Any, has: Any) -> Any:
        """What shall be in the places of a list or dict."""
        if isinstance(held, list) and isinstance(has, list):
            return [self._pair(held[at], new) if at < len(held) else new for at, new in enumerate(has)]
        if isinstance(held, dict) and isinstance(has, dict):
            return {key: self._pair(held[key], new) if key in held else new for key, new in has.items()}
        return has


def _own_copy(value: Any) -> Any:
    """A copy whose attributes can be replaced, and whose own lists and dicts can be written to."""
    made = copy.copy(value)
    before = contents_of(made)
    own = {
        name: bare_copy(held) if isinstance(held, dict | list) else held
        for name, held in before.attributes.items()
    }
    write(made, before, Contents(before.items, own))
    return made


def _is_unchanged(value: Any, made: Any) -> bool:
    """Whether a copy's `to` had nothing to do; one that holds nothing cannot tell."""
    before, after = attributes_of(value), attributes_of(made)
    return (
        bool(before)
        and before.keys() == after.keys()
        and all(
            item is after[name]
            or (
                isinstance(item, dict | list)
                and type(item) is type(after[name])
                and contents_of(item).is_as(contents_of(after[name]))
            )
            for name, item in before.items()
        )
    )


def find_device(value: Any, seen: set[int] | None = None) -> torch.device | None:
    """The device of the first tensor in a value, if there is one."""
    kind = kind_of(type(value))
    if kind == INERT:
        return None
    if kind == TENSOR:
        device: torch.device = value.device
        return device
    seen = set() if seen is None else seen
    if id(value) in seen:
        return None
    seen.add(id(value))
    items: Iterable[Any] = ()
    if kind in (SEQUENCE, MAPPING):
        items = value.values() if kind == MAPPING else value
    elif kind == RECORD:
        items = (getattr(value, field.name, None) for field in fields(value))
    elif isinstance(getattr(value, "device", None), torch.device):
        moves_on: torch.device = value.device
        return moves_on
    return next((found for item in items if (found := find_device(item, seen)) is not None), None)
