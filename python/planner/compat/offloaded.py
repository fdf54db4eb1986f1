"""accelerate's functions on the offloaded weights of a module: brought in for a while, read for a state dict, loaded from files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from planner.arguments import path_text, require_text
from planner.compat.tensors import set_module_tensor_to_device
from planner.dispatching.hooks.align import aligns
from planner.dispatching.install.lookup import TensorLookup
from planner.dispatching.install.record import dispatched_models
from planner.dispatching.offload.weight_files import load_offloaded_weight
from planner.dispatching.tensors.copies import copied, has_same_values, return_marks
from planner.dispatching.tensors.slots import Slot
from planner.errors import InvalidInputError
from planner.names import qualified, require_module, require_texts
from planner.spelling import shown

__all__ = [
    "align_module_device",
    "get_state_dict_from_offload",
    "get_state_dict_offloaded_model",
    "has_offloaded_params",
    "load_offloaded_weights",
]

logger = logging.getLogger(__name__)


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
