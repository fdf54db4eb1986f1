"""Devices that have no room for what lies there whatever the weights do."""

from __future__ import annotations

from collections.abc import Sequence

from planner.devices.budgets import DeviceBudget
from planner.errors import InfeasibleError
from planner.plans.columns import one_size

__all__ = ["no_room_for_taken"]


def no_room_for_taken(budgets: Sequence[DeviceBudget]) -> InfeasibleError | None:
    """Why there is no plan where less than is taken is there; None where it is."""
    short = next((budget for budget in budgets if budget.lacking_bytes), None)
    if short is None:
        return None
    more = short.more_bytes(0)
    enough = "" if more is None else f"{one_size(more)} more on {short.device}, or "
    return InfeasibleError(
        f"the cache does not fit where it rests: {one_size(short.taken_bytes)} of it rest on {short.device}, which has "
        f"{one_size(max(0, short.budget_bytes - short.headroom_bytes))}; {enough}a shorter context or fewer rows would be enough",
        block="",
        device=short.device,
        shortfall_bytes=more,
        more_bytes={} if more is None else {short.device: more},
        best_partial={},
        is_proven=True,
    )
