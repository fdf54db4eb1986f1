"""accelerate's functions on single tensors of a module."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from planner.arguments import name_groups, path_text, require_text
from planner.dispatching.hooks.align import aligns
from planner.dispatching.install.lookup import TensorLookup
from planner.dispatching.install.record import dispatched_models
from planner.dispatching.offload.store import TiedCopies, require_tied_copies
from planner.dispatching.offload.weight_files import load_offloaded_weight
from planner.dispatching.tensors.carrying import relocated
from planner.dispatching.tensors.copies import copied, has_same_values, like_parameter, return_marks
from planner.dispatching.tensors.slots import Slot, present_device, refuse_uninitialised
from planner.dispatching.transfer.move import find_device as _find_device
from planner.dispatching.transfer.move import moved
from planner.errors import InvalidInputError
from planner.model.dtypes import resolve_dtype
from planner.names import qualified, require_module, require_texts, text_set
from planner.spelling import shown

__all__ = [
    "align_module_device",
    "find_device",
    "get_non_persistent_buffers",
    "get_state_dict_from_offload",
    "get_state_dict_offloaded_model",
    "has_offloaded_params",
    "load_offloaded_weights",
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


def has_offloaded_params(module: nn.Module) -> bool:
    """Whether a module has a hook that offloads its weights.

    Source: accelerate 1.15, utils/modeling.py.
    """
    hook: Any = getattr(module, "_hf_hook", None)
    return aligns(hook) and bool(hook.offload)


@contextmanager
def align_module_device(
    module: nn.Module, execution_device: int | str | torch.device | None = None
) -> Iterator[None]:
    """While open, a module's own weights are there to be read and written.

    Args:
        module: the module.
        execution_device: where they shall be; by default where the module runs, for offloaded ones, and as they are for
            others.

    Guarantee: afterwards, also when the block raises, they are where they were, and what was written to them is kept.

    Source: accelerate 1.15, utils/modeling.py.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with align_module_device(layer, "cpu"):
        ...     layer.weight.device.type
        'cpu'
    """
    require_module(module)
    if has_offloaded_params(module):
        with _fetched(module, execution_device):
            yield
    elif execution_device is None:
        yield
    else:
        before = dict(module._parameters)
        moved: dict[str, tuple[Any, dict[str, Any]]] = {}
        try:
            for name, parameter in before.items():
                if parameter is not None:
                    set_module_tensor_to_device(module, name, execution_device)
                    now: Any = module._parameters[name]
                    moved[name] = now, dict(vars(now))
            yield
        finally:
            _return(module, before, moved)


@contextmanager
def _fetched(module: nn.Module, device: Any) -> Iterator[None]:
    hook: Any = module._hf_hook
    usual = hook.execution_device
    try:
        if device is not None:
            hook.execution_device = device
        hook.pre_forward(module)
        for offloaded_module in getattr(hook, "offloaded_modules", ()):
            offloaded_module.compare_all()
        try:
            yield
        finally:
            hook.post_forward(module, None)
    finally:
        hook.execution_device = usual


def _return(
    module: nn.Module, before: Mapping[str, Any], moved: Mapping[str, tuple[Any, dict[str, Any]]]
) -> None:
    """Puts back what was moved, with what was done to it; what was put in its place lies where that was."""
    for name, (now, marks) in moved.items():
        parameter: Any = before[name]
        found = module._parameters.get(name)
        if found is now is not parameter:
            _take_over(parameter, now)
            return_marks(parameter, now, marks)
            module._parameters[name] = parameter
        elif found is not None and found is not now and not found.is_meta:
            set_module_tensor_to_device(module, name, parameter.device)


def _take_over(parameter: Any, now: Any) -> None:
    if not (now.is_meta or parameter.is_meta):
        there = now.detach().to(parameter.device)
        if not _is_alike(there, parameter):
            parameter.data = there
        elif not has_same_values(there, parameter.detach()):
            with torch.no_grad():
                parameter.copy_(there)
    if now.requires_grad != parameter.requires_grad:
        parameter.requires_grad_(now.requires_grad)
    if now.grad is not None:
        gradient = copied(now.grad, parameter.device)
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _is_alike(one: Any, other: Any) -> bool:
    return bool(one.shape == other.shape and one.dtype == other.dtype and one.layout == other.layout)


def get_state_dict_offloaded_model(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of an offloaded model, on the CPU.

    Returns:
        By full name; tensors that rest on the CPU are those very tensors. What has no values is left out with a warning.

    Source: accelerate 1.15, utils/modeling.py, which leaves out the tensors of the model itself.
    """
    state: dict[str, torch.Tensor] = {}
    missing: list[str] = []
    resting = TensorLookup(model, dispatched_models(model))
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name in [*module._parameters, *module._buffers]:
            is_buffer = name in module._buffers
            slot = Slot(module, name, is_buffer)
            if slot.read() is None or not slot.is_persistent:
                continue
            full = qualified(prefix, name)
            value = resting.value(slot)
            if value is None or value.is_meta:
                missing.append(full)
            else:
                state[full] = value.detach().to("cpu")
    if missing:
        logger.warning(
            "The following tensors were not saved because they were still on meta device: %s", missing
        )
    return state


def get_state_dict_from_offload(
    module: nn.Module,
    module_name: str,
    state_dict: dict[str, Any],
    device_to_put_offload: int | str | torch.device = "cpu",
) -> dict[str, Any]:
    """Fills in the entries of a state dict that belong to an offloaded module.

    Args:
        module: the module.
        module_name: full name of one of its tensors.
        state_dict: entries to fill in; changed in place.
        device_to_put_offload: where offloaded tensors go.

    Returns:
        The state dict.

    Raises:
        InvalidInputError: no name, or no dict.

    Source: accelerate 1.15, utils/modeling.py.
    """
    require_text(module_name, "module_name")
    if not isinstance(state_dict, MutableMapping):
        raise InvalidInputError(f"state_dict must map names to tensors; got {shown(state_dict)}")
    root = module_name[: module_name.rfind(".")]
    device = device_to_put_offload if has_offloaded_params(module) else None
    with align_module_device(module, device):
        for key, value in module.state_dict().items():
            if f"{root}.{key}" in state_dict:
                state_dict[f"{root}.{key}"] = value
    return state_dict


def load_offloaded_weights(model: nn.Module, index: Mapping[str, Any] | None, offload_folder: Any) -> None:
    """Reads weights that :func:`planner.offload_weight` wrote into a model, on the CPU.

    Args:
        model: the model; changed in place.
        index: rows by full name; nothing for none.
        offload_folder: the folder.

    Raises:
        InvalidInputError: no index or no folder.
        OffloadError: as :func:`planner.load_offloaded_weight`. Fields: ``name``.

    Source: accelerate 1.15, utils/modeling.py.
    """
    if index is None:
        return
    if not isinstance(index, Mapping):
        raise InvalidInputError(f"index must map names to rows; got {shown(index)}")
    require_texts(index, "index")
    rows, offload_folder = index, path_text(offload_folder, "the folder for weights")
    for name, row in rows.items():
        partner = name.rpartition("SCB")
        if partner[1] and not partner[2] and f"{partner[0]}weight" in rows:
            continue
        statistics_name = f"{name.removesuffix('weight')}SCB"
        statistics = None
        if name.endswith("weight") and statistics_name in rows:
            statistics = load_offloaded_weight(
                f"{offload_folder}/{statistics_name}.dat", rows[statistics_name]
            )
        weight = load_offloaded_weight(f"{offload_folder}/{name}.dat", row)
        set_module_tensor_to_device(model, name, "cpu", value=weight, fp16_statistics=statistics)


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
