"""Which modules of a model PEFT has added, and where they go when the layer beside them is offloaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from planner.devices.keys import DeviceKey, canonical_device
from planner.dispatching.api import resolve_map
from planner.dispatching.hooks.align import AlignDevicesHook, aligns
from planner.dispatching.hooks.attach import add_hook_to_module, remove_hook_from_module
from planner.dispatching.install.device_map import ResolvedDeviceMap
from planner.dispatching.install.lookup import TensorLookup
from planner.dispatching.install.record import dispatched_models
from planner.dispatching.tensors.slots import modules_of, own_slots
from planner.names import device_of, nearest_key, qualified
from planner.plans.device_map import DeviceMap

__all__ = [
    "adapter_parts",
    "copied_modules",
    "make_resident",
    "running_device",
    "running_map",
    "with_adapters",
]


def adapter_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """What PEFT has added beside a model's layers, with its names: adapters, and modules that are trained whole."""
    from peft.tuners.adaption_prompt.layer import _BaseAdaptedAttention
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            assert isinstance(module, nn.Module)
            for attribute in (*module.adapter_layer_names, *module.other_param_names):
                part = _attribute(module, attribute)
                if isinstance(part, nn.Module):
                    yield qualified(name, attribute), part
        elif isinstance(module, _BaseAdaptedAttention):
            yield from ((qualified(name, own), part) for own, part in module.named_parameters(recurse=False))


def copied_modules(model: nn.Module, adapter_name: str) -> Iterator[nn.Module]:
    """The copies that PEFT has made of modules to train them whole."""
    from peft.tuners.ln_tuning.layer import LNTuningLayer
    from peft.utils.other import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            yield module.modules_to_save[adapter_name]
        elif isinstance(module, LNTuningLayer) and adapter_name in module.ln_tuning_layers:
            yield module.ln_tuning_layers[adapter_name]


def _attribute(module: nn.Module, name: str) -> Any:
    try:
        return attrgetter(name)(module)
    except AttributeError:
        return None


def with_adapters(
    model: nn.Module, device_map: Mapping[str, Any], main_device: Any = None
) -> Mapping[str, Any]:
    """A device map in which adapters lie where their layer runs: they can be trained, combined and saved there.

    Args:
        model: a model with adapters.
        device_map: names to devices.
        main_device: where offloaded parts run.

    Returns:
        Another map; with an execution map, if the first one has one.
    """
    running = running_map(device_map, main_device)
    moved: dict[str, DeviceKey] = {}
    for name, _ in adapter_parts(model):
        if device_of(name, running.keys) in ("cpu", "disk"):
            moved[name] = canonical_device(running_device(name, running))
    if isinstance(device_map, DeviceMap):
        return DeviceMap({**device_map, **moved}, device_map.execution_map)
    return {**device_map, **moved}


def running_map(device_map: Mapping[str, Any], main_device: Any = None) -> ResolvedDeviceMap:
    """What a device map says of each name, with what is offloaded running on a device, if one is said."""
    return resolve_map(device_map, None if main_device is None else {"": main_device})


def running_device(name: str, running: ResolvedDeviceMap) -> torch.device:
    """Where a part of a model runs."""
    key = nearest_key(name, running.placements)
    placement = running.root_placement if key is None else running.placements[key]
    return placement.execution_device


def make_resident(model: nn.Module) -> None:
    """Lets what is offloaded of a model lie where it runs, so that it can be trained; on the CPU, where its hook was taken off.

    Args:
        model: a copy that PEFT has made of an offloaded module; changed in place.
    """
    lookup = TensorLookup(model, dispatched_models(model))
    for _, module in modules_of(model):
        hook: Any = module.__dict__.get("_hf_hook")
        is_hooked = aligns(hook) and hook.offload and hook.execution_device is not None
        device = torch.device(hook.execution_device if is_hooked else "cpu")
        values = [
            (slot, slot.read(), lookup.value(slot)) for slot in own_slots(module) if slot.read().is_meta
        ]
        if is_hooked:
            remove_hook_from_module(module)
            add_hook_to_module(
                module, AlignDevicesHook(device, io_same_device=hook.io_same_device, skip_keys=hook.skip_keys)
            )
        for slot, placeholder, value in values:
            if not value.is_meta:  # an adapter that is loaded without memory of its own
                slot.write(_own(value, placeholder, device))


def _own(value: torch.Tensor, placeholder: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a weight for a copy of its module."""
    made = value.detach().to(device, copy=True)
    is_parameter = isinstance(placeholder, nn.Parameter)
    return nn.Parameter(made, requires_grad=placeholder.requires_grad) if is_parameter else made
