"""accelerate's functions on single tensors of a module, and on values that hold tensors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from planner.arguments import name_groups, require_text
from planner.dispatching.offload.store import TiedCopies, require_tied_copies
from planner.dispatching.tensors.carrying import relocated
from planner.dispatching.tensors.copies import copied, like_parameter
from planner.dispatching.tensors.slots import Slot, present_device, refuse_uninitialised
from planner.dispatching.transfer.move import find_device as _find_device
from planner.dispatching.transfer.move import moved
from planner.errors import InvalidInputError
from planner.model.dtypes import resolve_dtype
from planner.names import require_module, text_set
from planner.spelling import shown

__all__ = [
    "find_device",
    "get_non_persistent_buffers",
    "retie_parameters",
    "send_to_device",
    "set_module_tensor_to_device",
]

logger = logging.getLogger(__name__)


def set_module_tensor_to_device(
    module: nn.Module,
    tensor_name: str,
    device: int | str | torch.device,
    value: Any = None,
    dtype: str | torch.dtype | None = None,
    fp16_statistics: torch.Tensor | None = None,
    tied_params_map: TiedCopies | None = None,
    non_blocking: bool = False,
    clear_cache: bool = True,
) -> None:
    """Moves one parameter or buffer of a module, or gives it a value.

    Args:
        module: the module; changed in place.
        tensor_name: the tensor's name; dotted for one of a module inside.
        device: where to.
        value: its values; needed for a tensor on the meta device.
        dtype: what floating-point values become; by default the dtype of the tensor.
        fp16_statistics: set on the new parameter as ``SCB``.
        tied_params_map: by address, copies to be shared.
        non_blocking: as in ``Tensor.to``.
        clear_cache: without effect; accelerate empties the allocator's cache after every tensor.

    Raises:
        InvalidInputError: there is no such tensor, shapes differ, or nothing to put on the device; values, a dtype or a map
            that are none.

    Source: accelerate 1.15, utils/modeling.py.
    """
    slot = _slot(module, tensor_name)
    _require_companions(fp16_statistics, tied_params_map)
    old, target, non_blocking = slot.read(), present_device(device), bool(non_blocking)
    refuse_uninitialised(old, tensor_name)
    reference = old if value is None else value
    shared = _shared(tied_params_map, [value, old])
    if shared is not None and target in shared:
        slot.write(shared[target])
        return
    if old.is_meta and target.type != "meta" and value is None:
        raise InvalidInputError(f"{slot.name} is on the meta device, we need a `value` to put on {target}.")
    if value is not None:
        reference = _fitting(old, value, slot.name, dtype)
    elif dtype is not None and target.type == "meta" and old.dtype.is_floating_point:
        reference = old.to(resolve_dtype(dtype))
    if value is None and reference is old and (old.is_meta or old.device == target):
        return
    if reference is old:
        new = relocated(old, target, slot.name, non_blocking=non_blocking)
    else:
        new = copied(reference, target, non_blocking=non_blocking)
    if new is old or (slot.is_buffer is False):
        new = like_parameter(old, new)
    if fp16_statistics is not None:
        setattr(new, "SCB", fp16_statistics.to(target, non_blocking=non_blocking))  # noqa: B010 (bitsandbytes' name)
    slot.write(new)
    if shared is not None:
        shared[target] = new


def _require_companions(fp16_statistics: Any, tied_params_map: Any) -> None:
    require_tied_copies(tied_params_map)
    if not isinstance(fp16_statistics, torch.Tensor | None):
        raise InvalidInputError(f"fp16_statistics must be a tensor, not {shown(fp16_statistics)}")


def _slot(module: nn.Module, name: str) -> Slot:
    require_module(module)
    require_text(name, "the name of a tensor")
    path, _, local = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError as error:
        raise InvalidInputError(f"{type(module).__name__} has no module '{path}': {error}") from error
    if local not in owner._parameters and local not in owner._buffers:
        raise InvalidInputError(f"{owner} does not have a parameter or a buffer named {local}.")
    return Slot(owner, local, is_buffer=local in owner._buffers)


def _fitting(old: torch.Tensor, value: Any, name: str, dtype: str | torch.dtype | None) -> torch.Tensor:
    try:
        tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f'what shall be set in "{name}" is no tensor: {shown(value)}') from error
    if old.shape != tensor.shape and type(old).__name__ != "Params4bit":
        raise InvalidInputError(
            f'Trying to set a tensor of shape {tensor.shape} in "{name}" (which has shape {old.shape}), this looks incorrect.'
        )
    if dtype is None:
        return tensor.to(old.dtype)
    return tensor.to(resolve_dtype(dtype)) if tensor.dtype.is_floating_point else tensor


def _shared(tied: TiedCopies | None, tensors: Sequence[Any]) -> dict[Any, Any] | None:
    """The row of a map of tied tensors that one of these belongs to."""
    for tensor in tensors:
        if tied is not None and isinstance(tensor, torch.Tensor) and tensor.data_ptr() in tied:
            return tied[tensor.data_ptr()]
    return None


def get_non_persistent_buffers(module: nn.Module, recurse: bool = False, fqns: bool = False) -> set[str]:
    """Names of buffers that are not saved.

    Args:
        module: the module.
        recurse: those of all modules inside, too.
        fqns: full names; otherwise local ones.

    Source: accelerate 1.15, utils/modeling.py, where full names of the module's own begin with a dot.
    """
    require_module(module)
    found: set[str] = set()
    for prefix, inner in module.named_modules() if recurse else [("", module)]:
        for name in inner._non_persistent_buffers_set:
            found.add(f"{prefix}.{name}" if fqns and prefix else name)
    return found


def retie_parameters(model: nn.Module, tied_params: Sequence[Sequence[str]]) -> None:
    """Gives all names of each group the first of its tensors that is not on the meta device.

    Source: accelerate 1.15, utils/modeling.py.
    """
    for group in name_groups(tied_params, "tied_params"):
        slots = [_slot(model, name) for name in group]
        real = next((slot.read() for slot in slots if not slot.read().is_meta), None)
        if real is not None:
            for slot in slots:
                slot.write(real)


def send_to_device(
    tensor: Any,
    device: int | str | torch.device,
    non_blocking: bool = False,
    skip_keys: str | Sequence[str] | None = None,
) -> Any:
    """A value with its tensors on a device.

    Args:
        tensor: tensors in tuples, lists, mappings and dataclasses; anything else stays as it is.
        device: where to.
        non_blocking: as in ``Tensor.to``.
        skip_keys: keys of mappings whose values stay.

    Guarantee: no container is changed, and a value that needs no move is returned itself.

    Source: accelerate 1.15, utils/operations.py, which does not move dataclasses and fails on a defaultdict.

    Example:
        >>> send_to_device({"a": torch.ones(1), "b": 2}, "meta")["a"].device.type
        'meta'
    """
    skip = text_set(skip_keys, "skip_keys")
    return moved(
        tensor, present_device(device), skip, lambda item, where: item.to(where, non_blocking=non_blocking)
    )


def find_device(data: Any) -> torch.device | None:
    """The device of the first tensor in a value, if there is one. Source: accelerate 1.15, utils/operations.py."""
    return _find_device(data)
