"""Devices as they stand in a plan."""

from __future__ import annotations

from collections.abc import Sequence

from planner.devices.budgets import DeviceBudget
from planner.plans.parts import DevicePlan, DeviceUsage

__all__ = ["device_plan", "offloaded_bytes"]


def device_plan(
    budget: DeviceBudget, usage: DeviceUsage, reserved_bytes: int, buffer_bytes: int = 0
) -> DevicePlan:
    """A device as it stands in a plan, with what is kept free there for offloaded blocks, and what of these stays."""
    return DevicePlan(
        id=budget.device,
        kind=budget.kind,
        pool=budget.pool,
        budget_bytes=budget.budget_bytes,
        headroom_bytes=min(budget.headroom_bytes, budget.budget_bytes),
        used_bytes=usage.used_bytes,
        reserved_bytes=reserved_bytes,
        free_bytes=max(0, budget.capacity_bytes - usage.used_bytes - reserved_bytes - buffer_bytes),
        buffer_bytes=buffer_bytes,
        origin=budget.origin,
        name=budget.name,
    )


def offloaded_bytes(devices: Sequence[DevicePlan]) -> dict[str, int]:
    """Bytes by tier; where there is no accelerator, what lies on the cpu runs there."""
    on = {"cpu": 0, "disk": 0}
    has_accelerator = False
    for device in devices:
        if device.kind in on:
            on[device.kind] += device.used_bytes
        elif device.budget_bytes and device.budget_bytes > device.headroom_bytes:
            has_accelerator = True
    return {"cpu": on["cpu"] if has_accelerator else 0, "disk": on["disk"]}
