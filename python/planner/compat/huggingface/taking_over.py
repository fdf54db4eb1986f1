"""A model whose weights accelerate has offloaded, before PEFT works on it: ours takes the dispatch over, or refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from planner.compat.dispatching import dispatch_model
from planner.compat.huggingface.base_model import is_offloaded_by_others, place
from planner.dispatching.api import undispatch
from planner.dispatching.hooks.align import aligns
from planner.dispatching.install.other_hooks import hooks_of
from planner.dispatching.install.record import dispatched_models
from planner.dispatching.tensors.slots import modules_of
from planner.errors import OffloadError

if TYPE_CHECKING:
    from planner.compat.huggingface.in_force import Integration

__all__ = ["take_over"]


def take_over(integration: Integration, model: nn.Module) -> None:
    """Dispatches what accelerate has dispatched by ours, by the same map: adapters beside its placeholders compute garbage.

    Args:
        integration: says what reading an offloaded weight outside of its module's forward gives.
        model: the model; changed in place if a hook of others offloads weights of it.

    Raises:
        OffloadError: weights on disk, which would have to be in memory all at once, or no map. The model is as it was.

    Cost: what lies on accelerators is copied to the CPU and back.
    """
    device = _device_of_offloaded(model)
    if device is None or not is_offloaded_by_others(model) or dispatched_models(model):
        return
    device_map = model.__dict__.get("hf_device_map")
    if device_map is None or "disk" in device_map.values():
        what = "without a device map" if device_map is None else "some of them on disk"
        raise OffloadError(
            f"weights of this {type(model).__name__} are offloaded by another library, {what}, and adapters beside them would "
            "compute garbage; load it inside planner.integrate(), or call planner.undispatch(model) first"
        )
    place(integration, dispatch_model, undispatch(model), dict(device_map), device)


def _device_of_offloaded(model: nn.Module) -> Any:
    """Where others run what they have offloaded; None if nothing is."""
    for _, module in modules_of(model):
        for hook in hooks_of(module):
            if aligns(hook) and hook.offload:
                return hook.execution_device
    return None
