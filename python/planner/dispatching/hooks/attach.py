"""Attaching hooks to modules one by one, and taking them off: accelerate's functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from planner.arguments import require_text, require_weights
from planner.dispatching.hooks.align import AlignDevicesHook, aligns
from planner.dispatching.hooks.base import SequentialHook
from planner.dispatching.hooks.place import require_all_offloadable
from planner.dispatching.methods.forward import Forward, Hooked, installed, take_off
from planner.dispatching.methods.refusal import allow_moves
from planner.dispatching.offload.store import TiedCopies, require_tied_copies
from planner.dispatching.offload.weight_files import PrefixedDataset
from planner.dispatching.tensors.slots import present_device, require_initialised
from planner.errors import InvalidInputError
from planner.names import require_module, text_set
from planner.spelling import shown

__all__ = [
    "add_hook_to_module",
    "attach_align_device_hook",
    "attach_align_device_hook_on_blocks",
    "attach_execution_device_hook",
    "remove_hook_from_module",
    "remove_hook_from_submodules",
]


def add_hook_to_module(module: nn.Module, hook: Any, append: bool = False) -> nn.Module:
    """Calls a hook around a module's forward.

    Args:
        module: the module; changed in place.
        hook: the hook; replaces the one that is there.
        append: keep the one that is there, and call the new one after it.

    Returns:
        The module.

    Raises:
        InvalidInputError: no module, or no hook.

    Guarantee: name and signature of the forward stay; the module can be copied, pickled and compiled.

    Source: accelerate 1.15, hooks.py.

    Example:
        >>> layer = add_hook_to_module(nn.Linear(2, 2), AlignDevicesHook("cpu"))
        >>> type(remove_hook_from_module(layer).forward).__name__
        'method'
    """
    require_module(module)
    if isinstance(hook, type) or not hasattr(hook, "init_hook"):
        raise InvalidInputError(f"expected a hook such as planner.ModelHook(), got {shown(hook)}")
    for each in getattr(hook, "hooks", None) or (hook,):
        if aligns(each) and (each.offload or each.execution_device is not None):
            require_initialised(module, recurse=each.place_submodules)
    if append and getattr(module, "_hf_hook", None) is not None:
        before = module._hf_hook
        remove_hook_from_module(module)
        hook = SequentialHook(before, hook)
    if not (hasattr(module, "_hf_hook") and hasattr(module, "_old_forward")):
        module.__dict__["_old_forward"] = module.forward
        hooked = Hooked(module, None)
        hook.init_hook(module)
        hooked.install()
    else:
        hook.init_hook(module)
    module._hf_hook = hook
    return module


def remove_hook_from_module(module: nn.Module, recurse: bool = False) -> nn.Module:
    """Takes a module's hook off; offloaded weights go back to where they came from.

    Args:
        module: the module; changed in place.
        recurse: and those of all modules inside.

    Returns:
        The module.

    Source: accelerate 1.15, hooks.py.
    """
    require_module(module)
    if hasattr(module, "_hf_hook"):
        hook: Any = module._hf_hook
        hook.detach_hook(module)
        delattr(module, "_hf_hook")
    hooked = installed(module)
    while isinstance(hooked, Forward):
        below = hooked.previous
        if isinstance(hooked, Hooked):
            take_off(module, hooked)
        hooked = below
    if "_old_forward" in module.__dict__:
        _restore_forward(module, module.__dict__.pop("_old_forward"))
    allow_moves(module)
    if recurse:
        for child in module.children():
            remove_hook_from_module(child, recurse)
    return module


def _restore_forward(module: nn.Module, before: Any) -> None:
    if "GraphModuleImpl" in str(type(module)) or before == type(module).forward.__get__(module):
        module.__dict__.pop("forward", None)
    else:
        module.__dict__["forward"] = before


def remove_hook_from_submodules(module: nn.Module) -> None:
    """Takes the hooks of a module and of all modules inside off.

    Source: accelerate 1.15, hooks.py.
    """
    remove_hook_from_module(module)
    for child in module.children():
        remove_hook_from_submodules(child)


def attach_execution_device_hook(
    module: nn.Module,
    execution_device: int | str | torch.device,
    skip_keys: str | Iterable[str] | None = None,
    preload_module_classes: Iterable[str] | None = None,
    tied_params_map: TiedCopies | None = None,
) -> None:
    """Lets every module with tensors inside, and without a hook, run on a device.

    Args:
        module: the outermost one.
        execution_device: where to.
        skip_keys: as for :class:`AlignDevicesHook`.
        preload_module_classes: below modules of these classes, nothing is attached.
        tied_params_map: as for :class:`AlignDevicesHook`.

    Source: accelerate 1.15, hooks.py.
    """
    require_initialised(module)
    preloaded = text_set(preload_module_classes, "preload_module_classes")
    require_tied_copies(tied_params_map)
    present_device(execution_device)
    if not hasattr(module, "_hf_hook") and len(module.state_dict()) > 0:
        hook = AlignDevicesHook(execution_device, skip_keys=skip_keys, tied_params_map=tied_params_map)
        add_hook_to_module(module, hook)
    if _is_preloaded(module, preloaded):
        return
    for child in module.children():
        attach_execution_device_hook(child, execution_device, skip_keys, preloaded, tied_params_map)


def attach_align_device_hook(
    module: nn.Module,
    execution_device: int | str | torch.device | None = None,
    offload: bool = False,
    weights_map: Mapping[str, Any] | None = None,
    offload_buffers: bool = False,
    module_name: str = "",
    skip_keys: str | Iterable[str] | None = None,
    preload_module_classes: Iterable[str] | None = None,
    tied_params_map: TiedCopies | None = None,
) -> None:
    """Attaches an :class:`AlignDevicesHook` to every module that holds tensors of its own.

    Args:
        module: the outermost one.
        weights_map: resting weights by full name.
        module_name: the module's own full name.
        preload_module_classes: modules of these classes are brought in whole.
        execution_device, offload, offload_buffers, skip_keys, tied_params_map: as for :class:`AlignDevicesHook`.

    Raises:
        OffloadError: a tensor that cannot rest elsewhere, before anything is attached. Fields: ``name``.
        InvalidInputError, InvalidDevicesError: anything that is no module, device, mapping or names, likewise.

    Source: accelerate 1.15, hooks.py.
    """
    require_initialised(module)
    _require_resting(weights_map, module_name, tied_params_map)
    preloaded = text_set(preload_module_classes, "preload_module_classes")
    if offload:
        require_all_offloadable(module, module_name, offload_buffers=offload_buffers)
    _attach_aligning(
        module,
        execution_device,
        offload,
        weights_map,
        offload_buffers,
        module_name,
        skip_keys,
        preloaded,
        tied_params_map,
    )


def _require_resting(weights_map: Any, module_name: Any, tied_params_map: Any) -> None:
    if weights_map is not None:
        require_weights(weights_map)
    require_text(module_name, "module_name")
    require_tied_copies(tied_params_map)


def _attach_aligning(
    module: nn.Module,
    execution_device: Any,
    offload: bool,
    weights_map: Mapping[str, Any] | None,
    offload_buffers: bool,
    module_name: str,
    skip_keys: Any,
    preload_module_classes: frozenset[str],
    tied_params_map: TiedCopies | None,
) -> None:
    whole = offload and _is_preloaded(module, preload_module_classes)
    if whole or _holds_tensors(module):
        hook = AlignDevicesHook(
            execution_device=execution_device,
            offload=offload,
            weights_map=_below(weights_map, module_name),
            offload_buffers=offload_buffers,
            place_submodules=whole,
            skip_keys=skip_keys,
            tied_params_map=tied_params_map,
        )
        hook.module_name = module_name
        add_hook_to_module(module, hook, append=True)
    if whole:
        return
    for name, child in module.named_children():
        _attach_aligning(
            child,
            execution_device,
            offload,
            weights_map,
            offload_buffers,
            f"{module_name}.{name}" if module_name else name,
            skip_keys,
            preload_module_classes,
            tied_params_map,
        )


def attach_align_device_hook_on_blocks(
    module: nn.Module,
    execution_device: Any = None,
    offload: bool | Mapping[str, bool] = False,
    weights_map: Mapping[str, Any] | None = None,
    offload_buffers: bool = False,
    module_name: str = "",
    skip_keys: str | Iterable[str] | None = None,
    preload_module_classes: Iterable[str] | None = None,
    tied_params_map: TiedCopies | None = None,
) -> None:
    """Attaches hooks to the modules that are named, each with a device and an offload of its own.

    Args:
        module: the outermost one.
        execution_device: one for all, or by name.
        offload: one for all, or by name.
        weights_map: resting weights by full name.
        module_name: the module's own full name.
        offload_buffers, skip_keys, preload_module_classes, tied_params_map: as for :func:`attach_align_device_hook`.

    Raises:
        OffloadError, InvalidInputError, InvalidDevicesError: as :func:`attach_align_device_hook`.

    Source: accelerate 1.15, hooks.py.
    """
    require_initialised(module)
    _require_resting(weights_map, module_name, tied_params_map)
    preload_module_classes = text_set(preload_module_classes, "preload_module_classes")
    if not isinstance(execution_device, Mapping) and not isinstance(offload, Mapping):
        if offload:
            attach_align_device_hook(
                module,
                execution_device,
                True,
                weights_map,
                offload_buffers,
                module_name,
                skip_keys,
                tied_params_map=tied_params_map,
            )
        else:
            _attach_whole(module, execution_device, True, skip_keys, tied_params_map)
        return
    by_name = offload if isinstance(offload, Mapping) else dict.fromkeys(execution_device, offload)
    if module_name == "":
        _require_offloadable_blocks(module, by_name, offload_buffers=offload_buffers)
    devices = execution_device if isinstance(execution_device, Mapping) else dict.fromkeys(by_name, execution_device)  # fmt: skip
    if module_name in devices and module_name in by_name:
        device = devices[module_name]
        if by_name[module_name]:
            attach_align_device_hook(
                module,
                device,
                True,
                weights_map,
                offload_buffers,
                module_name,
                skip_keys,
                preload_module_classes,
                tied_params_map,
            )
            if not hasattr(module, "_hf_hook"):
                border = AlignDevicesHook(device, io_same_device=module_name == "", skip_keys=skip_keys)
                add_hook_to_module(module, border)
            attach_execution_device_hook(module, device, skip_keys, preload_module_classes, tied_params_map)
        else:
            _attach_whole(module, device, module_name == "", skip_keys, tied_params_map)
            attach_execution_device_hook(module, device, skip_keys, tied_params_map=tied_params_map)
    elif module_name == "":
        root = AlignDevicesHook(devices.get(""), io_same_device=True, skip_keys=skip_keys)
        add_hook_to_module(module, root)
    for name, child in module.named_children():
        attach_align_device_hook_on_blocks(
            child,
            devices,
            by_name,
            weights_map,
            offload_buffers,
            f"{module_name}.{name}" if module_name else name,
            skip_keys,
            preload_module_classes,
            tied_params_map,
        )


def _require_offloadable_blocks(
    model: nn.Module, by_name: Mapping[str, bool], *, offload_buffers: bool
) -> None:
    for name, module in model.named_modules():
        if by_name.get(name):
            require_all_offloadable(module, name, offload_buffers=offload_buffers)


def _attach_whole(
    module: nn.Module, device: Any, io_same_device: bool, skip_keys: Any, tied: TiedCopies | None
) -> None:
    hook = AlignDevicesHook(
        device,
        io_same_device=io_same_device,
        skip_keys=skip_keys,
        place_submodules=True,
        tied_params_map=tied,
    )
    add_hook_to_module(module, hook)


def _holds_tensors(module: nn.Module) -> bool:
    return any(value is not None for value in (*module._parameters.values(), *module._buffers.values()))


def _is_preloaded(module: nn.Module, classes: Iterable[str]) -> bool:
    return type(module).__name__ in classes


def _below(weights_map: Mapping[str, Any] | None, name: str) -> PrefixedDataset | None:
    return None if weights_map is None else PrefixedDataset(weights_map, f"{name}." if name else "")
