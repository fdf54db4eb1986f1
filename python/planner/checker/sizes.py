"""Bytes of tensors once they are loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final, NamedTuple

from planner.checker.described import DescribedTensor
from planner.checker.devices import Device, shown
from planner.checker.walk import NamedTensor, Walk
from planner.errors import InvalidInputError, InvalidTreeError

# These stay as they are whatever the dtype: set_module_tensor_to_device of accelerate 1.15.
_NOT_CAST: Final = ("torch.uint", "torch.int", "torch.bool")
_PACKED_BITS: Final = {"torch.quint4x2": 4, "torch.quint2x4": 2}  # elements that share a byte
_CUSTOM_BITS: Final = {"FP8": 8, "INT4": 4, "INT2": 2}  # members of accelerate's CustomDtype
_LEAVES: Final = (str, bytes, int, float, type, FunctionType, MethodType, ModuleType)


class SizedTensor(NamedTuple):
    """One tensor: its names, first the one that was met first, the devices that hold it, and its bytes."""

    names: list[NamedTensor]
    devices: set[Device]
    size_bytes: int


class Sizes:
    """Bytes that a tensor takes once it is loaded in the planned dtype."""

    def __init__(self, dtype: Any, special_dtypes: Mapping[str, Any]) -> None:
        self._bits = None if dtype is None else _dtype_bits(dtype)
        self._special_bits = {name: _dtype_bits(special) for name, special in special_dtypes.items()}

    def planned_bytes(self, name: Callable[[], str], tensor: Any) -> int:
        """Raises InvalidTreeError."""
        if isinstance(tensor, DescribedTensor):
            return tensor.size_bytes
        bits = self._special_bits.get(name()) if self._special_bits else None
        if bits is None and not str(tensor.dtype).startswith(_NOT_CAST):
            bits = self._bits
        try:
            return _stored_bytes(tensor, bits)
        except (RuntimeError, ValueError) as error:
            raise InvalidTreeError(f"{name()} has no size yet: {error}", name=name()) from error


def _stored_bytes(tensor: Any, bits: int | None) -> int:
    """Bytes of a tensor: of what a wrapper holds on this process, not of what it looks like, and of what is attached."""
    if not hasattr(tensor, "__tensor_flatten__"):
        own = -(-int(tensor.numel()) * (bits or _dtype_bits(tensor.dtype)) // 8)
        attached = _attached_bytes(tensor) if vars(tensor) else 0
        return attached if attached and _only_wraps(tensor) else own + attached
    return sum(_stored_bytes(getattr(tensor, inner), None) for inner in tensor.__tensor_flatten__()[0])


def _only_wraps(tensor: Any) -> bool:
    """Whether a class does all that its tensors do by itself: the bytes that it seems to have are those of others."""
    return type(tensor).__torch_dispatch__ is not sys.modules["torch"].Tensor.__torch_dispatch__


def _attached_bytes(tensor: Any) -> int:
    """Bytes of tensors in the attributes of a tensor of another class than torch's, each storage once.

    Modules, and placeholders for offloaded tensors, lead elsewhere.
    """
    torch: Any = sys.modules["torch"]
    if type(tensor) in (torch.Tensor, torch.nn.Parameter) or hasattr(tensor, "carries_nothing"):
        return 0
    met, todo = {id(tensor)}, list(vars(tensor).values())
    memory: dict[Any, dict[Any, Any]] = {}  # by storage and by what of it
    while todo:
        value = todo.pop()
        if id(value) in met or isinstance(value, (*_LEAVES, torch.nn.Module)):
            continue
        met.add(id(value))
        if isinstance(value, torch.Tensor):
            address = address_of(value)
            part = (value.storage_offset(), value.shape, value.stride(), value.dtype) if address else 0
            memory.setdefault(address or id(value), {})[part] = value
            if not (hasattr(value, "__tensor_flatten__") or hasattr(value, "carries_nothing")):
                todo.extend(vars(value).values())
            continue
        if isinstance(value, Mapping):
            todo.extend(value.values())
        elif isinstance(value, Collection):
            todo.extend(value)
        todo.extend(getattr(value, "__dict__", {}).values())
        todo.extend(getattr(value, name, None) for cls in type(value).__mro__ for name in _slot_names(cls))
    memory.pop(address_of(tensor), None)
    return sum(_bytes_of_one_storage(list(parts.values())) for parts in memory.values())


def _bytes_of_one_storage(parts: list[Any]) -> int:
    """Bytes of views of one storage: they may overlap, and together are at most the storage."""
    total = sum(
        _stored_bytes(part, None) if hasattr(part, "__tensor_flatten__") else int(part.nbytes)
        for part in parts
    )
    return total if len(parts) == 1 else min(total, int(parts[0].untyped_storage().nbytes()))


def _slot_names(cls: type) -> Iterator[str]:
    """The attributes that a class has in slots; private ones are stored under a mangled name."""
    slots = vars(cls).get("__slots__", ())
    for name in (slots,) if isinstance(slots, str) else slots:
        if not name.endswith("__"):
            yield f"_{cls.__name__.lstrip('_')}{name}" if name.startswith("__") else name


def _dtype_bits(dtype: Any) -> int:
    if isinstance(dtype, str):
        # A live model's torch is imported already; a model in words needs none.
        dtype = getattr(sys.modules.get("torch"), dtype.removeprefix("torch."), dtype)
    bits = _CUSTOM_BITS.get(getattr(dtype, "name", ""))
    if bits is None and not hasattr(dtype, "itemsize"):  # its text may be endless, or raise
        raise InvalidInputError(f"{shown(dtype)} is not a dtype")
    return bits or _PACKED_BITS.get(str(dtype)) or int(dtype.itemsize) * 8


def address_of(tensor: Any) -> tuple[str, int] | None:
    """Where the storage of a tensor lies; None where it is not known, as for all tensors on the meta device."""
    try:
        address = tensor.untyped_storage().data_ptr()
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        return None
    return (str(tensor.device), address) if address else None


def sized_tensors(walk: Walk, sizes: Sizes) -> list[SizedTensor]:
    """Every tensor once.

    Raises:
        InvalidTreeError: one has no size yet. Fields: ``name``.
    """
    return [
        SizedTensor(
            group,
            {named.device for named in group if named.device is not None},
            sizes.planned_bytes(partial(walk.name, group[0]), group[0].tensor),
        )
        for group in walk.by_identity()
    ]
