"""A mapping that cannot change: hashable and picklable, which ``MappingProxyType`` is not on Python 3.11."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

K = TypeVar("K")
V_co = TypeVar("V_co", covariant=True)


def _order(key: object) -> tuple[int, float, str, str]:
    """Numbers by value, then null, then all other keys by what they are written as; many kinds have no order of their own."""
    if isinstance(key, int | float):
        return 0, key, "", ""
    text = str(key.value if isinstance(key, enum.Enum) else key)
    return (1 if key is None else 2), 0, text, type(key).__qualname__


@dataclass(frozen=True, eq=False, repr=False)
class FrozenMap(Mapping[K, V_co]):
    """An immutable mapping, sorted by key (numbers before texts), so that the order of layers never shows.

    Example:
        >>> FrozenMap({"cpu": 3, 1: 2, 0: 1})
        FrozenMap({0: 1, 1: 2, 'cpu': 3})
    """

    _items: Mapping[K, V_co] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pairs = sorted(self._items.items(), key=lambda pair: _order(pair[0]))
        object.__setattr__(self, "_items", dict(pairs))

    def __getitem__(self, key: K) -> V_co:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"FrozenMap({self._items!r})"
