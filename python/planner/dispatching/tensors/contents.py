"""What a container holds, read and written past the methods of its own class, which may count or refuse."""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import MemberDescriptorType
from typing import Any, NamedTuple

__all__ = ["Contents", "attributes_of", "bare_copy", "contents_of", "is_same", "keeps_order", "write"]

Items = list[Any] | dict[Any, Any] | None

# Slots by class, its own and those it inherits.
_SLOTS: dict[type, dict[str, Any]] = {list: {}, dict: {}, tuple: {}}


class Contents(NamedTuple):
    """What a container held at one time.

    Args:
        items: of a list or a dict; None for other classes, whose items are among their attributes.
        attributes: in the instance's own dict and in slots.
    """

    items: Items
    attributes: dict[str, Any]

    def is_as(self, other: Contents) -> bool:
        """Whether the very same objects are in the same places."""
        return self.has_items_of(other) and is_same(self.attributes, other.attributes)

    def has_items_of(self, other: Contents) -> bool:
        """Whether the very same items are in the same places."""
        return is_same(self.items, other.items)


def is_same(one: Items, other: Items) -> bool:
    """Whether the very same objects are in the same places of two lists or two dicts."""
    if one is None or other is None:
        return one is other
    if len(one) != len(other):
        return False
    if isinstance(one, list):
        return all(mine is its for mine, its in zip(one, other, strict=True))
    assert isinstance(other, dict)
    rows = zip(one.items(), other.items(), strict=True)
    return all(key is its_key and mine is its for (key, mine), (its_key, its) in rows)


def contents_of(value: Any) -> Contents:
    """What a container holds now."""
    return Contents(_items_of(value), attributes_of(value))


def _items_of(value: Any) -> Items:
    if type(value) in (list, dict):
        copied: Items = value.copy()  # which the compiler can trace
        return copied
    if isinstance(value, list):
        return list.copy(value)
    if isinstance(value, OrderedDict):
        return {key: dict.__getitem__(value, key) for key in OrderedDict.__iter__(value)}
    return dict.copy(value) if isinstance(value, dict) else None


def attributes_of(value: Any) -> dict[str, Any]:
    """Attributes that an object itself holds."""
    held = getattr(value, "__dict__", None)
    found = dict(held) if isinstance(held, dict) else {}
    for name, slot in _slots_of(type(value)).items():
        try:
            found[name] = slot.__get__(value)
        except AttributeError:
            continue  # not set
    return found


def _slots_of(cls: type) -> dict[str, Any]:
    found = _SLOTS.get(cls)
    if found is None:
        found = _SLOTS[cls] = {
            name: member
            for base in reversed(cls.__mro__)
            for name, member in vars(base).items()
            if isinstance(member, MemberDescriptorType)
        }
    return found


def bare_copy(value: Any) -> Any:
    """A shallow copy. Of lists and dicts, also of their subclasses, it is made without calling methods of the class."""
    cls: Any = type(value)
    if cls is list or cls is dict:
        return value.copy()
    if not isinstance(value, list | dict):
        return copy.copy(value)
    try:
        made = cls.__new__(cls)
    except TypeError:
        return copy.copy(value)  # it wants arguments
    write(made, contents_of(made), contents_of(value))
    return made


def write(value: Any, before: Contents, after: Contents) -> None:
    """Leaves in a container what differs between two contents, one of them its own now.

    Args:
        value: the container.
        before: what it holds.
        after: what it shall hold.
    """
    if isinstance(value, list):
        if not is_same(before.items, after.items):
            list.__setitem__(value, slice(None), after.items or [])
    elif isinstance(value, dict):
        assert isinstance(before.items, dict) and isinstance(after.items, dict)
        _write_items(value, before.items, after.items)
    slots = _slots_of(type(value))
    for name in before.attributes.keys() - after.attributes.keys():
        if name in slots:
            slots[name].__delete__(value)
        else:
            del value.__dict__[name]
    for name, item in after.attributes.items():
        if name in before.attributes and before.attributes[name] is item:
            continue
        if name in slots:
            slots[name].__set__(value, item)
        else:
            value.__dict__[name] = item


def keeps_order(before: dict[Any, Any], after: dict[Any, Any]) -> bool:
    """Whether what is in both dicts comes first in the second one, in the same order."""
    left = [key for key in before if key in after]
    return all(mine is its for mine, its in zip(left, after, strict=False))


def _write_items(value: dict[Any, Any], before: dict[Any, Any], after: dict[Any, Any]) -> None:
    kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict
    for key in before.keys() - after.keys():
        kind.__delitem__(value, key)
    if not keeps_order(before, after):
        kind.clear(value)
        before = {}
    for key, item in after.items():
        if key not in before or before[key] is not item:
            kind.__setitem__(value, key, item)
