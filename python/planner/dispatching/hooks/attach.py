"""Attaching hooks to modules one by one, and taking them off: accelerate's functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from planner.arguments import require_text, require_weights
from planner.dispatching.hooks.align import AlignDevicesHook, aligns
from planner.dispatching.hooks.base import SequentialHook
from planner.dispatching.hooks.place import require_all_offloadable
from planner.dispatching.methods.forward import Hooked, forwards_of, restore_forward
from planner.dispatching.methods.overrides import Conversion
from planner.dispatching.offload.store import TiedCopies, require_tied_copies
from planner.dispatching.offload.weight_files import PrefixedDataset
from planner.dispatching.tensors.journal import Journal
from planner.dispatching.tensors.slots import present_device, require_initialised
from planner.errors import InvalidInputError
from planner.names import qualified, require_module, text_set
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

    Guarantee: name and signature of the forward stay; the module can be copied, pickled and compiled. A hook that cannot be
        attached leaves the module with the one that it had, if any was to be kept.

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
        return _append(module, hook)
    if not (hasattr(module, "_hf_hook") and hasattr(module, "_old_forward")):
        # Under this name accelerate's own remover looks for it.
        module.__dict__["_old_forward"] = module.forward
        hooked = Hooked(module, None)
        hook.init_hook(module)
        # After `init_hook`, so that one that raises leaves the forward as it was.
        hooked.install(Journal())
    else:
        hook.init_hook(module)
    module._hf_hook = hook
    return module


def _append(module: nn.Module, hook: Any) -> nn.Module:
    """Attaches a hook after the one that is there, which stays alone if the new one raises."""
    before: Any = module._hf_hook
    remove_hook_from_module(module)
    try:
        return add_hook_to_module(module, SequentialHook(before, hook))
    except BaseException:
        # By then it was attached again itself, and only it knows where the weights are.
        before.detach_hook(module)
        add_hook_to_module(module, before)
        raise


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
    for forward in forwards_of(module):
        if isinstance(forward, Hooked):
            forward.take_off(Journal())
    if "_old_forward" in module.__dict__:
        restore_forward(module, Journal())
    _allow_moves(module)
    if recurse:
        for child in module.children():
            remove_hook_from_module(child, recurse)
    return module


def _allow_moves(module: nn.Module) -> None:
    """Takes off what stands in the place of a module's own conversions."""
    Conversion.end(module, Journal())
    # accelerate's are functions; its own remover takes them off, too.
    for name in ("to", "cuda", "xpu", "npu", "mlu", "sdaa", "musa"):
        module.__dict__.pop(name, None)


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
    attaching = _Attaching.of(
        skip_keys=skip_keys, preload_module_classes=preload_module_classes, tied_params_map=tied_params_map
    )
    present_device(execution_device)
    attaching.on_what_runs(module, execution_device, attaching.preloaded)


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
    require_text(module_name, "module_name")
    attaching = _Attaching.of(
        weights_map, offload_buffers, skip_keys, preload_module_classes, tied_params_map
    )
    if offload:
        require_all_offloadable(module, module_name, offload_buffers=offload_buffers)
    attaching.on_parts(module, execution_device, offload, module_name, attaching.preloaded)


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
    require_text(module_name, "module_name")
    attaching = _Attaching.of(
        weights_map, offload_buffers, skip_keys, preload_module_classes, tied_params_map
    )
    if isinstance(execution_device, Mapping) or isinstance(offload, Mapping):
        by_name = offload if isinstance(offload, Mapping) else dict.fromkeys(execution_device, offload)
        devices = execution_device if isinstance(execution_device, Mapping) else dict.fromkeys(by_name, execution_device)  # fmt: skip
        # All is checked before anything is attached, so that an error leaves no half of it.
        for name, inner in _named_below(module, module_name):
            if name in devices and name in by_name:
                present_device(devices[name])
            if by_name.get(name):
                require_all_offloadable(inner, name, offload_buffers=offload_buffers)
        attaching.on_blocks(module, devices, by_name, module_name)
    elif offload:
        require_all_offloadable(module, module_name, offload_buffers=offload_buffers)
        attaching.on_parts(module, execution_device, True, module_name, frozenset())
    else:
        attaching.on_whole(module, execution_device, io_same_device=True)


def _named_below(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, inner in module.named_modules():
        yield qualified(prefix, name), inner


@dataclass(frozen=True, slots=True)
class _Attaching:
    """What all hooks of one call have in common; see :func:`attach_align_device_hook`.

    Args:
        preloaded: classes whose modules are brought in whole.
    """

    weights_map: Mapping[str, Any] | None
    offload_buffers: bool
    skip_keys: Any
    preloaded: frozenset[str]
    tied_params_map: TiedCopies | None

    @classmethod
    def of(
        cls,
        weights_map: Any = None,
        offload_buffers: Any = False,
        skip_keys: Any = None,
        preload_module_classes: Any = None,
        tied_params_map: Any = None,
    ) -> _Attaching:
        """The same, checked before anything is attached."""
        if weights_map is not None:
            require_weights(weights_map)
        preloaded = text_set(preload_module_classes, "preload_module_classes")
        require_tied_copies(tied_params_map)
        return cls(weights_map, offload_buffers, skip_keys, preloaded, tied_params_map)

    def on_what_runs(self, module: nn.Module, device: Any, preloaded: frozenset[str]) -> None:
        """Lets each module with tensors inside, and without a hook, run on a device."""
        # accelerate's condition: what has no saved tensors inside runs where it is called.
        if not hasattr(module, "_hf_hook") and len(module.state_dict()) > 0:
            hook = AlignDevicesHook(device, skip_keys=self.skip_keys, tied_params_map=self.tied_params_map)
            add_hook_to_module(module, hook)
        if not _is_of(module, preloaded):
            for child in module.children():
                self.on_what_runs(child, device, preloaded)

    def on_parts(
        self, module: nn.Module, device: Any, offload: bool, name: str, preloaded: frozenset[str]
    ) -> None:
        """A hook on each module with tensors of its own, or on one that is brought in whole."""
        whole = offload and _is_of(module, preloaded)
        if whole or _has_own_tensors(module):
            hook = AlignDevicesHook(
                execution_device=device,
                offload=offload,
                weights_map=self._weights_below(name),
                offload_buffers=self.offload_buffers,
                place_submodules=whole,
                skip_keys=self.skip_keys,
                tied_params_map=self.tied_params_map,
            )
            hook.module_name = name
            # A hook that another library has attached stays, and is called first.
            add_hook_to_module(module, hook, append=True)
        for part, child in () if whole else module.named_children():
            self.on_parts(child, device, offload, qualified(name, part), preloaded)

    def on_whole(self, module: nn.Module, device: Any, *, io_same_device: bool) -> None:
        """One hook that places all tensors inside."""
        hook = AlignDevicesHook(
            device,
            io_same_device=io_same_device,
            skip_keys=self.skip_keys,
            place_submodules=True,
            tied_params_map=self.tied_params_map,
        )
        add_hook_to_module(module, hook)

    def on_blocks(
        self, module: nn.Module, devices: Mapping[str, Any], by_name: Mapping[str, bool], name: str
    ) -> None:
        """Hooks on the modules that are named, and one on the root, which returns results to where inputs were."""
        is_root = name == ""
        if name in devices and name in by_name:
            device = devices[name]
            if by_name[name]:
                self.on_parts(module, device, True, name, self.preloaded)
                # A named module without tensors of its own is a border for its arguments all the same.
                if not hasattr(module, "_hf_hook"):
                    border = AlignDevicesHook(device, io_same_device=is_root, skip_keys=self.skip_keys)
                    add_hook_to_module(module, border)
                self.on_what_runs(module, device, self.preloaded)
            else:
                self.on_whole(module, device, io_same_device=is_root)
                self.on_what_runs(module, device, frozenset())
        # Only the model itself sends its result back; between blocks, results stay where they are.
        elif is_root:
            root = AlignDevicesHook(devices.get(""), io_same_device=True, skip_keys=self.skip_keys)
            add_hook_to_module(module, root)
        for part, child in module.named_children():
            self.on_blocks(child, devices, by_name, qualified(name, part))

    def _weights_below(self, name: str) -> PrefixedDataset | None:
        if self.weights_map is None:
            return None
        return PrefixedDataset(self.weights_map, f"{name}." if name else "")


def _has_own_tensors(module: nn.Module) -> bool:
    return any(value is not None for value in (*module._parameters.values(), *module._buffers.values()))


def _is_of(module: nn.Module, classes: frozenset[str]) -> bool:
    return type(module).__name__ in classes
