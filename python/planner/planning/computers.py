"""Devices of several computers: a plan over these is a pipeline, with a process for each of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.devices.budgets import DeviceBudget
from planner.devices.keys import DeviceKey
from planner.devices.nodes import node_of
from planner.errors import InvalidDevicesError
from planner.names import listed
from planner.planning.machines import read_machine
from planner.settings.schema import Settings
from planner.settings.strategies import ByTime

__all__ = ["memory_of_computers", "require_computers"]


def memory_of_computers(settings: Settings) -> Mapping[DeviceKey, int]:
    """By accelerator, what a machine of several computers says that it has; empty for one computer.

    Raises:
        InvalidDevicesError: one of them does not say it. Fields: ``device``.
        InvalidInputError: no machine. Fields: ``problems``.
    """
    if settings.machine is None or not isinstance(settings.strategy, ByTime):
        return {}
    devices = [device for device in read_machine(settings.machine).devices if device.kind != "cpu"]
    if not any(device.node for device in devices):
        return {}
    found: dict[DeviceKey, int] = {}
    for device in devices:
        if device.memory_bytes is None:
            raise InvalidDevicesError(
                f"the machine does not say memory_bytes of device {device.key}: write it there, or say max_memory={{{device.key!r}: "
                "'80GiB', ...}}",
                device=device.key,
            )
        found[device.key] = device.memory_bytes
    return found


def require_computers(budgets: Sequence[DeviceBudget], settings: Settings) -> None:
    """Refuses what no plan over several computers has.

    Raises:
        InvalidDevicesError: a strategy that may come back to a device; a host or a disk, which no process may use that runs elsewhere;
            devices with and without a computer. Fields: ``device``.
    """
    far = [budget.device for budget in budgets if node_of(budget.device)]
    if not far:
        return
    near = [budget.device for budget in budgets if not node_of(budget.device)]
    if near:
        raise InvalidDevicesError(
            f"devices {listed(map(str, near))} are of no computer, and {listed(map(str, far))} are: name the computer of each, as in 'a/0'",
            device=near[0],
        )
    if not isinstance(settings.strategy, ByTime):
        raise InvalidDevicesError(
            f"devices {listed(map(str, far))} are of several computers, and each has one run there: strategy='throughput', 'pipeline' or "
            "'latency' plans so",
            device=far[0],
        )
    slow = [budget.device for budget in budgets if budget.kind != "accelerator"]
    if slow:
        raise InvalidDevicesError(
            f"{listed(map(str, slow))}: nothing is offloaded in a plan over several computers; leave that budget out",
            device=slow[0],
        )
