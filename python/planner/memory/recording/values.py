"""Tensors in what a module is handed or returns."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["is_cache", "tensors_in"]

_PLAIN = (bool, int, float, str, type(None))


def is_cache(value: object) -> bool:
    """Whether a value belongs to the layers that fill it; a border leaves it where it is."""
    return any(base.__name__.endswith("Cache") for base in type(value).__mro__)


def tensors_in(value: Any, skip: Container[str] = (), seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Tensors in tuples, lists, mappings and records, which are what a border moves.

    Args:
        value: anything.
        skip: keys of mappings that are passed over.
        seen: containers that need no second look; added to.
    """
    if isinstance(value, _PLAIN):
        return
    if isinstance(value, torch.Tensor):
        yield value
        return
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, nn.Module | type) or is_cache(value):
        return
    seen.add(id(value))
    for item in _items(value, skip):
        yield from tensors_in(item, skip, seen)


def _items(value: Any, skip: Container[str]) -> list[Any]:
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, Mapping):
        return [item for key, item in value.items() if key not in skip]
    if hasattr(value, "__dataclass_fields__") or callable(getattr(value, "to", None)):
        return list(getattr(value, "__dict__", {}).values())
    return []
