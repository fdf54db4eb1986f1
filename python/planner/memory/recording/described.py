"""What a module, or a value that it is handed, is made of: equal descriptions are treated alike by the same code."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Final, TypeAlias

import torch
from torch import nn

__all__ = [
    "Described",
    "NotPlainError",
    "Spec",
    "described",
    "layout_of",
    "number_in",
    "rebuilt",
    "structure_of",
]

Spec: TypeAlias = tuple[Hashable, ...]
"""A value as plain data: a kind, and what it is made of."""

# Under which a module knows its number: what it says of the caches that it is handed.
NUMBERS: Final = ("layer_idx", "layer_id", "layer_index", "layer_number")
_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Size, torch.layout)


class NotPlainError(Exception):
    """Something in a value has no description."""


class Described:
    """Tensors of a value in order, each object and each storage with a number. Holds none of them."""

    def __init__(self) -> None:
        self.tensors: list[weakref.ref[torch.Tensor]] = []
        self.storages: dict[int, int] = {}
        self._objects: dict[int, int] = {}

    def number_of(self, tensor: torch.Tensor) -> int | None:
        """The number of a tensor that was met."""
        number = self._objects.get(id(tensor))
        # Another may have come to where one was.
        return number if number is not None and self.tensors[number]() is tensor else None

    def tensor(self, value: Any) -> Spec:
        """A tensor: which one, or its shape, and which storage it lies in."""
        if type(value) not in (torch.Tensor, nn.Parameter) or not value.is_meta:
            raise NotPlainError
        known = self.number_of(value)
        if known is not None:
            return ("same", known)
        self._objects[id(value)] = len(self.tensors)
        self.tensors.append(weakref.ref(value))
        storage = value.untyped_storage()
        number = self.storages.setdefault(storage._cdata, len(self.storages))
        return ("tensor", *layout_of(value), number, storage.nbytes())


def layout_of(tensor: torch.Tensor) -> Spec:
    """What a tensor is beside the memory that it lies in."""
    return tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.requires_grad


def described(value: Any, here: torch.device | None, other: Callable[[Any], Spec]) -> Spec:
    """A value as plain data.

    Args:
        value: anything.
        here: the device of the block itself.
        other: describes what is neither plain nor a container.

    Raises:
        NotPlainError: something in it has no description.
    """
    kind = type(value)
    if kind in _PLAIN:
        return ("plain", kind, value)  # 1, 1.0 and True are equal
    if kind is torch.device:
        return ("here",) if value == here else ("plain", kind, value)
    if kind in (tuple, list):
        return (kind, *(described(item, here, other) for item in value))
    if kind is dict:
        pairs = ((described(key, here, other), described(item, here, other)) for key, item in value.items())
        return (kind, *pairs)
    if kind in (set, frozenset):
        return (kind, frozenset(described(item, here, other) for item in value))
    return other(value)


def rebuilt(spec: Spec, here: torch.device, tensor: Callable[[Spec], torch.Tensor]) -> Any:
    """The value that a description is of.

    Args:
        spec: of :func:`described`.
        here: the device of the block itself.
        tensor: makes or finds the tensor of what described it.
    """
    kind, *rest = spec
    parts: Any = rest
    if kind == "plain":
        return parts[1]
    if kind == "here":
        return here
    if kind in (set, frozenset):
        return kind(rebuilt(item, here, tensor) for item in parts[0])
    if kind in (tuple, list):
        made = [rebuilt(item, here, tensor) for item in parts]
        return tuple(made) if kind is tuple else made
    if kind is dict:
        return {rebuilt(key, here, tensor): rebuilt(item, here, tensor) for key, item in parts}
    return tensor(spec)


def structure_of(module: nn.Module, is_here: Callable[[torch.Tensor], bool]) -> Hashable | None:
    """What a module is made of but for its number: two with the same run the same operators on the same arguments.

    Args:
        module: with all that is inside.
        is_here: whether a weight belongs to this block alone.

    Returns:
        None where that cannot be told: a module inside has hooks or a forward of its own, or weights lie elsewhere.
    """
    parts: list[Hashable] = []
    for name, inside in module.named_modules(remove_duplicate=False):
        if name and "forward" in vars(inside):
            return None
        parts.append((name, type(inside)))
        for key, value in vars(inside).items():
            if key in ("_parameters", "_buffers"):
                for each, tensor in value.items():
                    if tensor is not None and not is_here(tensor):
                        return None
                    parts.append((each, None if tensor is None else layout_of(tensor)))
            elif "_hooks" in key:
                if value:
                    return None
            elif key not in ("_modules", "forward", *NUMBERS):
                parts.append((key, described(value, None, _known)))
    return tuple(parts)


def _known(value: Any) -> Spec:
    """What is not plain, of a module: as this very object, or what it was made of."""
    if type(value) is partial:
        return ("partial", described((value.func, value.args, value.keywords), None, _known))
    return ("object", id(value))


def number_in(module: nn.Module) -> int | None:
    """The number that a layer and all inside have; None where they have none, or several."""
    found = {
        number
        for inside in module.modules()
        for key in NUMBERS
        if type(number := vars(inside).get(key)) is int
    }
    return found.pop() if len(found) == 1 else None
