"""Why a block does not lie on another device: templates that the report fills in."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence

from planner.names import is_within
from planner.plans.notices import device_room_bytes
from planner.plans.parts import DevicePlan, PlanParts

__all__ = ["WHY_NOT", "placed_by_user", "ranks", "rooms_bytes"]

# Fields are place, the other device; home, where the block lies; needed, room and free, sizes. The first that holds is said.
WHY_NOT: Mapping[str, str] = {
    "user": "You said where this goes.",
    "too_small": "{place}: has {room} in all, {needed} are needed.",
    "no_room": "{place}: has {free} left, {needed} are needed.",
    "slower": "{place}: slower than {home}, where it fits.",
    "also": "{place}: has room for it, too ({free} left).",
}
_RANKS = {"accelerator": 0, "cpu": 1, "disk": 2}


def placed_by_user(plan: PlanParts, names: Sequence[str]) -> list[str]:
    """Which of a model's names pins and forbidden devices are about, globs written out."""
    settings = plan.account.settings
    said = [path.partition(".")[2] for path in settings if path.startswith(("pin.", "forbid."))]
    known = set(names) if said else set()
    globs = [re.compile(fnmatch.translate(each)).match for each in said if each not in known]
    matched: list[str] = []
    for name in names if globs else ():  # outer ones first, and what a match holds goes with it
        if not (matched and is_within(name, matched[-1])) and any(matches(name) for matches in globs):
            matched.append(name)
    return [*(name for name in said if name in known), *matched]


def ranks(plan: PlanParts) -> list[int]:
    """How slow each device is, in the plan's order."""
    return [_RANKS[device.kind] for device in plan.devices]


def rooms_bytes(plan: PlanParts) -> list[tuple[int | None, int | None]]:
    """What weights may take of each device, and what is left of that; None is without limit."""
    return [_room(device) for device in plan.devices]


def _room(device: DevicePlan) -> tuple[int | None, int | None]:
    if device.budget_bytes is None:
        return None, None
    return device_room_bytes(device), device.free_bytes
