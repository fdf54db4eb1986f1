"""Moving what is handed to a module to the device where it runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["INERT", "KINDS", "TENSOR", "find_device", "is_elsewhere", "kind_of", "moved"]

INERT, TENSOR, SEQUENCE, MAPPING, RECORD, MOVER = range(6)

# What instances of a class are to a border, by class; filled as classes are met.
KINDS: dict[type, int] = {
    torch.Tensor: TENSOR,
    nn.Parameter: TENSOR,
    type(None): INERT,
    bool: INERT,
    int: INERT,
    float: INERT,
    str: INERT,
    tuple: SEQUENCE,
    list: SEQUENCE,
    dict: MAPPING,
}

Carry = Callable[[torch.Tensor, torch.device], torch.Tensor]


def kind_of(cls: type) -> int:
    """What instances of a class are to a border. Cost: one look-up after the first time."""
    kind = KINDS.get(cls)
    if kind is None:
        kind = KINDS[cls] = _classify(cls)
    return kind


def _classify(cls: type) -> int:
    if issubclass(cls, torch.Tensor):
        return TENSOR
    # A cache belongs to the layers that fill it; each puts its part where it runs.
    if issubclass(cls, nn.Module | type) or any(base.__name__.endswith("Cache") for base in cls.__mro__):
        return INERT
    if issubclass(cls, Mapping):
        return MAPPING
    has_to = callable(getattr(cls, "to", None))
    if issubclass(cls, tuple | list) and not (has_to and issubclass(cls, tuple)):
        return SEQUENCE
    if has_to:
        return MOVER
    return RECORD if is_dataclass(cls) else INERT


def is_elsewhere(value: Any, device: torch.device | None, skip: Container[str] = ()) -> bool:
    """Whether some tensor in a value lies on another device.

    Args:
        value: anything; tensors are looked for in tuples, lists, mappings and dataclasses.
        device: the device in question.
        skip: keys of mappings that are passed over.
    """
    kind = kind_of(type(value))
    if kind == INERT:
        return False
    if kind == TENSOR:
        return bool(value.device != device)
    if kind == SEQUENCE:
        return any(is_elsewhere(item, device, skip) for item in value)
    if kind == MAPPING:
        return any(key not in skip and is_elsewhere(item, device, skip) for key, item in value.items())
    if kind == RECORD:
        return any(is_elsewhere(getattr(value, field.name, None), device, skip) for field in fields(value))
    return bool(getattr(value, "device", None) != device)


def moved(value: Any, device: torch.device, skip: Container[str], carry: Carry) -> Any:
    """A value with its tensors on a device; the value itself where nothing has to move.

    Args:
        value: anything; tensors are looked for in tuples, lists, mappings and dataclasses.
        device: where to.
        skip: keys of mappings whose values stay as they are.
        carry: moves one tensor.

    Guarantee: no container is changed; where something moves, there is a new one of the same class around it.
    """
    if not is_elsewhere(value, device, skip):
        return value
    kind = kind_of(type(value))
    if kind == TENSOR:
        return carry(value, device)
    if kind == SEQUENCE:
        return _moved_sequence(value, [moved(item, device, skip, carry) for item in value])
    if kind == MAPPING:
        return _moved_mapping(value, device, skip, carry)
    if kind == RECORD:
        twin = copy.copy(value)
        for field in fields(value):
            item = getattr(value, field.name, None)
            if is_elsewhere(item, device, skip):
                object.__setattr__(twin, field.name, moved(item, device, skip, carry))
        return twin
    twin = _twin(value)
    made = twin.to(device)
    # Some `to` methods change their object and return nothing.
    return twin if made is None else made


def _moved_sequence(value: Any, items: list[Any]) -> Any:
    cls = type(value)
    if cls is list:
        return items
    if cls is tuple:
        return tuple(items)
    if isinstance(value, list):
        twin = copy.copy(value)
        twin[:] = items
        return twin
    # Named ones, and subclasses with a constructor of their own.
    made = tuple.__new__(cls, items)
    if hasattr(value, "__dict__"):
        made.__dict__.update(vars(value))
    return made


def _moved_mapping(value: Any, device: torch.device, skip: Container[str], carry: Carry) -> Any:
    changed = {
        key: moved(item, device, skip, carry)
        for key, item in value.items()
        if key not in skip and is_elsewhere(item, device, skip)
    }
    cls = type(value)
    if cls is dict:
        return {**value, **changed}
    if is_dataclass(cls):
        # A model's output: its fields are its items, and those that are None are no items.
        return cls(**{**value, **changed})
    if not hasattr(value, "__setitem__"):
        return cls({**value, **changed})
    twin = _twin(value)
    for key, item in changed.items():
        twin[key] = item
    return twin


def _twin(value: Any) -> Any:
    """A copy whose attributes can be replaced, and whose own lists and dicts can be written to."""
    twin = copy.copy(value)
    for name, held in list(vars(twin).items()) if hasattr(twin, "__dict__") else ():
        if isinstance(held, dict | list):
            object.__setattr__(twin, name, copy.copy(held))
    return twin


def find_device(value: Any) -> torch.device | None:
    """The device of the first tensor in a value, if there is one."""
    kind = kind_of(type(value))
    if kind == TENSOR:
        device: torch.device = value.device
        return device
    items: Iterable[Any] = ()
    if kind in (SEQUENCE, MAPPING):
        items = value.values() if kind == MAPPING else value
    elif kind == RECORD:
        items = (getattr(value, field.name, None) for field in fields(value))
    elif kind == MOVER and isinstance(getattr(value, "device", None), torch.device):
        moves_on: torch.device = value.device
        return moves_on
    return next((found for item in items if (found := find_device(item)) is not None), None)
