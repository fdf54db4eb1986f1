"""Copies that a block gets in the place of the caller's tensors and containers: what it does to them, it has done to those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from planner.dispatching.tensors.contents import Contents, contents_of, keeps_order, write
from planner.dispatching.tensors.copies import copied, is_transformed, return_marks
from planner.dispatching.transfer.kinds import INERT, TENSOR, kind_of
from planner.dispatching.transfer.overlaps import shares_bytes
from planner.errors import OffloadError

__all__ = ["ArgumentCopies", "rebuilt"]


@dataclass(frozen=True, slots=True, eq=False)
class _CopiedTensor:
    """A tensor of the caller's, its copy, how often that had been written to (None: not counted), and where it began."""

    tensor: torch.Tensor
    made: torch.Tensor
    version: int | None
    address: int
    marks: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class _CopiedContainer:
    """A container of the caller's, what the block got in its place, and what both held then."""

    value: Any
    made: Any
    held: Contents
    lent: Contents


class ArgumentCopies:
    """What was lent for one call.

    Guarantee: what is handed in twice, or holds itself, is one object for the block as well. Giving back a second time
        does nothing, or what an interrupt has left undone.
    """

    __slots__ = ("_containers", "_has_containers", "_made", "_mappings", "_originals", "_tensors", "handed")

    def __init__(self) -> None:
        # By address; caller's object and copy are kept with it, so that no other object gets that address meanwhile.
        self._made: dict[int, tuple[Any, Any]] = {}
        self._originals: dict[int, tuple[Any, Any]] = {}
        self._tensors: list[_CopiedTensor] = []
        self._containers: list[_CopiedContainer] = []
        self._has_containers = False
        self._mappings: list[tuple[Any, Any, dict[Any, Any]]] = []
        # What the block got.
        self.handed: list[Any] = []

    def find(self, value: Any) -> Any:
        """What was made for a container already; None if nothing was."""
        row = self._made.get(id(value))
        return None if row is None else row[1]

    def lend(self, value: Any, made: Any) -> None:
        """One thing stands for another from now on."""
        self._made[id(value)] = self._originals[id(made)] = (value, made)

    def watch_tensor(self, tensor: torch.Tensor, made: torch.Tensor) -> None:
        """What is written into a copy from now on, is written into the tensor in the end."""
        self.lend(tensor, made)
        version = None if made.is_inference() else made._version
        self._tensors.append(_CopiedTensor(tensor, made, version, _address_of(made), dict(made.__dict__)))

    def watch(self, value: Any, made: Any, held: Contents) -> None:
        """What is done to a copy from now on, is done to the container in the end.

        Args:
            held: what the container held when it was copied.
        """
        self._has_containers = True
        self._containers.append(_CopiedContainer(value, made, held, contents_of(made)))

    def watch_mapping(self, value: Any, made: Any) -> None:
        """The same for a mapping that keeps its items where only its own methods find them."""
        self._has_containers = True
        self._mappings.append((value, made, dict(made.items())))

    def returned(self, output: Any) -> Any:
        """What a block returns, after giving back: a container that it was handed is the caller's own there, too.

        Tensors stay where the block has left them.
        """
        return self._returned(output, set()) if self._has_containers else output

    def has_copies(self) -> bool:
        """Whether there is something to give back."""
        return bool(self._originals)

    def write_back(self) -> None:
        """Does to the caller's tensors and containers what was done to those that stood for them."""
        if not self._originals:
            return
        if len(self._tensors) > 1:
            _require_apart(self._tensors)
        for row in self._tensors:
            _return_tensor(row)
        self._tensors.clear()
        seen: set[int] = set()
        # The caller's own containers shall hold the caller's tensors, too.
        for value in self.handed:
            self._original(value, seen)
        while self._containers:
            self._return(self._containers[-1], seen)
            self._containers.pop()
        while self._mappings:
            self._return_mapping(*self._mappings[-1], seen)
            self._mappings.pop()

    def _return(self, row: _CopiedContainer, seen: set[int]) -> None:
        now = contents_of(row.made)
        if now.is_as(row.lent):
            return
        found = contents_of(row.value)
        attributes = self._changed(row.lent.attributes, now.attributes, seen)
        wanted = Contents(self._items(row, found, now, seen), _merged(found.attributes, attributes))
        write(row.value, found, wanted)

    def _return_mapping(self, value: Any, made: Any, lent: dict[Any, Any], seen: set[int]) -> None:
        now = dict(made.items())
        changed = self._changed(lent, now, seen)
        if not keeps_order(lent, now):
            wanted = _in_order_of(now, _merged(dict(value.items()), changed))
            for key in list(value):
                del value[key]
            changed = wanted
        for key, item in changed.items():
            if item is not _ABSENT:
                value[key] = item
            elif key in value:
                del value[key]

    def _items(self, row: _CopiedContainer, found: Contents, now: Contents, seen: set[int]) -> Any:
        """Items that the caller's container shall hold, also where it was written to meanwhile."""
        was: Any = row.lent.items
        has: Any = found.items
        if isinstance(now.items, dict):
            merged = _merged(has, self._changed(was, now.items, seen))
            return merged if keeps_order(was, now.items) else _in_order_of(now.items, merged)
        if now.items is None:
            return None
        if len(now.items) >= len(was) and all(mine is its for mine, its in zip(was, now.items, strict=False)):
            return [*has, *(self._original(item, seen) for item in now.items[len(was) :])]
        if found.has_items_of(row.held):
            return [self._original(item, seen) for item in now.items]
        raise OffloadError(
            f"a {type(row.value).__name__} of {len(was)} items was changed by a block that got a copy of it, and by somebody "
            f"else, who left {len(has)}: which of them it should hold cannot be told; let the block only append, or place "
            "both on one device"
        )

    def _changed(self, before: Any, now: dict[Any, Any], seen: set[int]) -> dict[Any, Any]:
        """What was set or taken away, as the caller knows it."""
        changed = {key: _ABSENT for key in before if key not in now}
        for key, item in now.items():
            if key not in before or before[key] is not item:
                changed[key] = self._original(item, seen)
        return changed

    def _original(self, item: Any, seen: set[int]) -> Any:
        """What the caller knows something as; containers that a block has made hold what the caller knows."""
        row = self._originals.get(id(item))
        if row is not None:
            return row[0]
        kind = kind_of(type(item))
        if kind in (INERT, TENSOR):
            return item
        return _with_parts(item, seen, self._original)

    def _returned(self, item: Any, seen: set[int]) -> Any:
        if kind_of(type(item)) in (INERT, TENSOR):
            return item
        row = self._originals.get(id(item))
        if row is not None and not isinstance(item, tuple):
            return row[0]
        return _with_parts(item, seen, self._returned)


def _with_parts(item: Any, seen: set[int], original: Callable[[Any, set[int]], Any]) -> Any:
    """A container with other parts in the places of its own: itself, but for tuples."""
    if isinstance(item, tuple):
        parts = [original(part, seen) for part in item]
        is_same = all(part is before for part, before in zip(parts, item, strict=True))
        return item if is_same else rebuilt(item, parts)
    if id(item) in seen:
        return item
    seen.add(id(item))
    now = contents_of(item)
    items: Any = now.items
    if isinstance(items, list):
        items = [original(part, seen) for part in items]
    elif isinstance(items, dict):
        items = {key: original(part, seen) for key, part in items.items()}
    attributes = {name: original(part, seen) for name, part in now.attributes.items()}
    write(item, now, Contents(items, attributes))
    return item


_ABSENT = object()


def _address_of(tensor: torch.Tensor) -> int:
    is_known = tensor.layout == torch.strided and not is_transformed(tensor)
    return tensor.data_ptr() if is_known else 0


def _has_become_another(row: _CopiedTensor) -> bool:
    """Whether it is another one now: `.data = …`, `resize_`."""
    tensor, made = row.tensor, row.made
    return made.shape != tensor.shape or made.dtype != tensor.dtype or _address_of(made) != row.address


def _is_written(row: _CopiedTensor) -> bool:
    return row.version is not None and row.made._version != row.version


def _require_apart(rows: list[_CopiedTensor]) -> None:
    """Raises OffloadError if a copy was written to whose bytes are those of another one as well: the copies have bytes apart."""
    for row in rows:
        if not _is_written(row) or _has_become_another(row):
            continue
        for other in rows:
            if other is not row and shares_bytes(row.tensor, other.tensor):
                raise OffloadError(
                    f"a block wrote into a tensor of the shape {tuple(row.tensor.shape)}, which it was handed together with another view "
                    f"of the same bytes, of the shape {tuple(other.tensor.shape)}; each was copied to {row.made.device}, so that the "
                    "other one did not change; hand in one of them, or a clone, or place both blocks on one device"
                )


def _return_tensor(row: _CopiedTensor) -> None:
    tensor, made = row.tensor, row.made
    if _has_become_another(row):
        tensor.data = copied(made, tensor.device)
    elif _is_written(row):
        tensor.copy_(made)
    return_marks(tensor, made, row.marks)


def _merged(found: Any, changed: dict[Any, Any]) -> dict[Any, Any]:
    """What is there now, and over it what was changed."""
    made = {key: item for key, item in found.items() if changed.get(key) is not _ABSENT}
    made.update((key, item) for key, item in changed.items() if item is not _ABSENT)
    return made


def _in_order_of(other: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    return {**{key: items[key] for key in other if key in items}, **items}


def rebuilt(value: Any, items: list[Any]) -> Any:
    """A tuple of the same class with other items."""
    cls = type(value)
    if cls is tuple:
        return tuple(items)
    if hasattr(cls, "n_sequence_fields"):
        # What torch.max and the like return: classes of C with a constructor of their own.
        return cls(items)
    # Named ones, and subclasses with a constructor of their own.
    made = tuple.__new__(cls, items)
    if hasattr(value, "__dict__"):
        made.__dict__.update(vars(value))
    return made
