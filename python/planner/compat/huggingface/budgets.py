"""What weights may take where, as transformers reads ``max_memory``, and what is said of what it does not cover."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from math import ceil
from typing import TYPE_CHECKING, Any

from planner.caller import warn_caller
from planner.compat.transformers import get_max_memory
from planner.devices.keys import Budgets, DeviceKey, accelerator_count
from planner.errors import InvalidDevicesError
from planner.names import counted, listed, named
from planner.units import format_bytes

if TYPE_CHECKING:
    from planner.compat.huggingface.in_force import Integration

__all__ = ["budgets_of", "said_budgets", "shares_left", "warn_of_disk"]


def said_budgets(integration: Integration, max_memory: Mapping[Any, Any] | None) -> Mapping[Any, Any] | None:
    """The budgets of this load, else those of the integration, else None: what is free now."""
    return (integration.settings.get("max_memory") or None) if max_memory is None else max_memory


def budgets_of(said: Mapping[Any, Any] | None) -> Budgets:
    """Budgets in bytes, a mapping of their own.

    Raises:
        InvalidDevicesError: no devices, or one that this machine does not have. Fields: ``device``.
        InvalidByteSizeError: words that are no size. Fields: ``text``.
    """
    budgets = get_max_memory(said)
    count = accelerator_count()
    for device, size_bytes in budgets.items():
        if isinstance(device, int) and device >= count and size_bytes:
            raise InvalidDevicesError(
                f"max_memory gives accelerator {device} {format_bytes(int(size_bytes))}; this machine has {count} "
                "(numbers below that would do)",
                device=device,
            )
    return budgets


def shares_left(budgets: Budgets, rooms: Budgets) -> dict[DeviceKey, str]:
    """What must stay free of each budget for weights to get a room, as :func:`planner.plan` takes it.

    Example:
        >>> shares_left({0: 100, "cpu": 50}, {0: 90, "cpu": 50})
        {0: '10.000000%'}
    """
    return {
        device: f"{ceil((1 - rooms[device] / budget) * 10**8) / 10**6:.6f}%"
        for device, budget in budgets.items()
        if rooms[device] < budget
    }


def warn_of_disk(
    device_map: Mapping[str, DeviceKey], disk_bytes: Callable[[list[str]], int], budgets: Container[DeviceKey]
) -> None:
    """Warns, once for a model, of modules that lie on a disk which the budgets do not name.

    Args:
        device_map: where each module lies.
        disk_bytes: bytes of these modules together.
        budgets: the devices that were named.
    """
    on_disk = [name for name, device in device_map.items() if device == "disk"]
    if not on_disk or "disk" in budgets:
        return
    total_bytes = disk_bytes(on_disk)
    more = (
        f"{format_bytes(total_bytes)} more room on the cpu would keep them in memory"
        if "cpu" in budgets
        else f"max_memory names no cpu: with 'cpu': '{format_bytes(total_bytes)}' or more they would be in memory"
    )
    warn_caller(
        f"{counted(len(on_disk), 'module')} of {format_bytes(total_bytes)} in all find no room and are left on disk, from where "
        f"each forward reads them: {listed(map(named, on_disk), most=20)}; {more}"
    )
