"""The functions that PEFT and diffusers make their maps with, by ours of the same name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from planner.compat.accelerate import get_balanced_memory, infer_auto_device_map
from planner.compat.huggingface.in_force import Integration
from planner.devices.keys import Budgets, DeviceKey

__all__ = ["balanced", "inferred"]


def inferred(
    integration: Integration, before: Callable[..., object], *args: object, **kwargs: object
) -> Mapping[str, DeviceKey]:
    """In the place of accelerate's ``infer_auto_device_map``."""
    infer: Callable[..., Mapping[str, DeviceKey]] = infer_auto_device_map
    return infer(*args, **kwargs)


def balanced(
    integration: Integration, before: Callable[..., object], *args: object, **kwargs: object
) -> Budgets:
    """In the place of accelerate's ``get_balanced_memory``."""
    balance: Callable[..., Budgets] = get_balanced_memory
    return balance(*args, **kwargs)
