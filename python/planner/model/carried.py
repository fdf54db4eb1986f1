"""Tensors that a parameter carries in its attributes, as quantised weights carry their scales."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

# What a class of tensors says whose attributes lead elsewhere.
CARRIES_NOTHING = "carries_nothing"


def carried_tensors(tensor: Any) -> dict[str, Any]:
    """Tensors in a tensor's attributes by path, each object once; through plain objects and containers of any depth.

    Modules are not looked into: a parameter may know its module. Nor is a tensor that says what it wraps.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> weight.state = {"absmax": torch.ones(1)}
        >>> list(carried_tensors(weight))
        ['state.absmax']
    """
    import torch

    found: dict[str, Any] = {}
    seen = {id(tensor)}
    pending = deque(parts_of(tensor))
    while pending:
        path, value = pending.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            found[path] = value
        pending.extend((f"{path}.{name}", part) for name, part in parts_of(value))
    return found


def parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """What a plain object, a container or a tensor holds, by name; nothing for what leads elsewhere."""
    import torch

    if isinstance(value, (*_ATOMS, torch.nn.Module)):
        return
    if isinstance(value, torch.Tensor):
        if not any(hasattr(type(value), word) for word in ("__tensor_flatten__", CARRIES_NOTHING)):
            yield from vars(value).items()
        return
    if isinstance(value, Mapping):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from ((str(index), part) for index, part in enumerate(value))
    yield from getattr(value, "__dict__", {}).items()
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                yield name, getattr(value, _mangled(cls, name), None)


_ATOMS = (
    *(str, bytes, bytearray, int, float, complex, type(None), type),
    *(FunctionType, BuiltinFunctionType, MethodType, ModuleType),
)


def _mangled(cls: type, name: str) -> str:
    """A private slot's name, as the class sees it."""
    is_private = name.startswith("__") and not name.endswith("__")
    return f"_{cls.__name__.lstrip('_')}{name}" if is_private else name


def carried_bytes(tensor: Any) -> int:
    """Bytes of the tensors that a tensor carries; each storage once, and none for its own."""
    own = _storage_of(tensor)
    storages: dict[Any, dict[Any, Any]] = {}
    for part in carried_tensors(tensor).values():
        key = _storage_of(part)
        if key != own:
            storages.setdefault(key, {})[_place_in_storage(part)] = part
    return sum(_bytes_of_views(list(views.values())) for views in storages.values())


def _bytes_of_views(views: list[Any]) -> int:
    """Bytes of tensors over one storage."""
    total = sum(_held_bytes(view) for view in views)
    return total if len(views) == 1 else min(total, views[0].untyped_storage().nbytes())


def _place_in_storage(tensor: Any) -> Any:
    try:
        return tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
    except (NotImplementedError, RuntimeError):
        return id(tensor)


def _held_bytes(tensor: Any) -> int:
    """Bytes of one tensor, or of those that it wraps."""
    flatten = getattr(type(tensor), "__tensor_flatten__", None)
    if flatten is not None:
        return sum(_held_bytes(getattr(tensor, name)) for name in flatten(tensor)[0])
    return int(tensor.numel()) * int(tensor.dtype.itemsize)


def _storage_of(tensor: Any) -> Any:
    """What two tensors over the same bytes have in common; on the meta device, only the object itself says that."""
    try:
        address = tensor.untyped_storage().data_ptr()
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        address = 0
    return (str(tensor.device), address) if address else id(tensor)
