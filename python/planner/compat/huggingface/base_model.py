"""The dispatch of a model with adapters: of the model that PEFT has wrapped, so that it stays dispatched without the wrapper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planner.compat.dispatching import require_cover
from planner.compat.huggingface import placed
from planner.compat.huggingface.adapters import running_device, running_map, with_adapters
from planner.dispatching.install.device_map import ResolvedDeviceMap
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.dispatching.tensors.slots import modules_of, own_slots
from planner.plans.device_map import DeviceMap
from planner.plans.plan import Plan

if TYPE_CHECKING:
    from planner.compat.huggingface.in_force import Integration

__all__ = ["base_of", "is_offloaded_by_others", "place"]


def place(
    integration: Integration,
    before: Callable[..., Any],
    model: nn.Module,
    device_map: Plan | Mapping[str, Any],
    main_device: Any = None,
    *args: Any,
    **kwargs: Any,
) -> nn.Module:
    """``dispatch_model`` of a model with adapters: they lie where their layer runs.

    Args:
        integration, before: as :func:`planner.compat.huggingface.placed.place`.
        model: the model with adapters. One whose weights others have offloaded is left to them.
        device_map: a plan, or names to devices: those of this model, or of the model that it wraps.
        main_device, args, kwargs: as accelerate 1.15's signature has them.

    Returns:
        The model.
    """
    if is_offloaded_by_others(model):
        before(model, device_map, main_device, *args, **kwargs)
        return model
    base = base_of(model)
    own_map = _map_of(base, model, device_map.device_map if isinstance(device_map, Plan) else device_map)
    complete = with_adapters(base, own_map, main_device)
    placed.place(integration, before, base, complete, main_device, *args, **kwargs)
    _move_others(model, base, running_map(complete, main_device))
    # Adapters go, and the map stays: it names what is there without them.
    shown: dict[str, Any] = base.__dict__["hf_device_map"]
    for name in complete.keys() - own_map.keys():
        del shown[name]
    return model


def is_offloaded_by_others(model: nn.Module) -> bool:
    """Whether a weight has its values elsewhere, and not by ours."""
    return any(parameter.is_meta and not is_offloaded(parameter) for parameter in model.parameters())


def base_of(model: nn.Module) -> nn.Module:
    """The model that PEFT has wrapped; the model itself, if it has not."""
    from peft import PeftMixedModel, PeftModel

    found: Any = model
    if isinstance(model, PeftMixedModel):  # has no such method
        found = model.base_model.model
    elif isinstance(model, PeftModel):
        found = model.get_base_model()
    return found  # type: ignore[no-any-return]


def _map_of(base: nn.Module, model: nn.Module, device_map: Mapping[str, Any]) -> Mapping[str, Any]:
    """The map of the wrapped model. Raises InvalidConstraintError for tensors without a device."""
    if base is model or device_map.keys() <= set(_names(base)):
        return device_map
    require_cover(model, device_map)
    prefix = next(name for name, module in model.named_modules() if module is base)
    if isinstance(device_map, DeviceMap):
        return device_map.below(prefix)
    return dict(DeviceMap(device_map).below(prefix))


def _names(model: nn.Module) -> Iterator[str]:
    yield from (name for name, _ in model.named_modules(remove_duplicate=False))
    yield from (name for name, _ in model.named_parameters(remove_duplicate=False))
    yield from (name for name, _ in model.named_buffers(remove_duplicate=False))


def _move_others(model: nn.Module, base: nn.Module, running: ResolvedDeviceMap) -> None:
    """What PEFT keeps outside of the wrapped model goes where it is used: prompts are joined with what is embedded."""
    embeddings = model._modules.get("word_embeddings")
    names = (name for name, module in base.named_modules() if module is embeddings)
    name = None if embeddings is None else next(names, None)
    device = running.main_device if name is None else running_device(name, running)
    inside = {id(module) for _, module in modules_of(base)}
    for _, module in modules_of(model):
        for slot in () if id(module) in inside else own_slots(module):
            tensor = slot.read()
            if isinstance(tensor, nn.Parameter):
                tensor.data = tensor.data.to(device)  # optimizers know the object
            elif isinstance(tensor, torch.Tensor):
                slot.write(tensor.to(device))
