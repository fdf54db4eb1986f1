"""Whether the bytes that a plan tells of a device add up to its budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from planner.checker.findings import Finding

__all__ = ["unequal_budgets"]

_PARTS: Final = ("headroom", "margin", "used", "buffer", "cache", "activation", "reserved", "free")


def unequal_budgets(devices: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """Devices of a plan whose parts are not their budget.

    Args:
        devices: as the plan's JSON has them: ``id``, ``budget_bytes`` and the parts of it; those without a budget have no sum.

    Example:
        >>> [str(each) for each in unequal_budgets([{"id": 0, "budget_bytes": 9, "used_bytes": 5, "free_bytes": 3}])]
        ['device 0: its parts are 8 bytes, and its budget is 9']
    """
    for device in devices:
        budget_bytes = device["budget_bytes"]
        if budget_bytes is None:
            continue
        sum_bytes = sum(device.get(f"{part}_bytes") or 0 for part in _PARTS)
        if sum_bytes != budget_bytes:
            yield Finding(
                rule="unequal-budget",
                name=str(device["id"]),
                message=f"device {device['id']}: its parts are {sum_bytes} bytes, and its budget is {budget_bytes}",
                needed_bytes=sum_bytes,
                available_bytes=budget_bytes,
            )
