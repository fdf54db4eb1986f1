"""Devices with what weights may take there: budgets said or detected, less headroom."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil

from planner.choices import DeviceKind
from planner.devices.detect import FreeMemory, free_devices
from planner.devices.keys import DeviceKey, device_kind
from planner.devices.nodes import in_order, plan_device
from planner.errors import InvalidDevicesError

_DETECTED_HEADROOM = "10%"
_ALL = "all"
_KIND_ORDER = {"accelerator": 0, "cpu": 1, "disk": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBudget:
    """What weights may take on one device.

    Args:
        device: its key.
        budget_bytes: said or detected.
        headroom: what must stay free of it: bytes, or a share as in "10%".
        origin: "user", or "detected: …" with where it was read.
        pool: devices of one pool share the largest of their capacities.
        name: what the card is called, where it was detected.
        taken_bytes: what else lies there, whatever the weights do: what rests of an offloaded cache.
    """

    device: DeviceKey
    budget_bytes: int
    headroom: int | str
    origin: str
    pool: str | None = None
    name: str | None = None
    taken_bytes: int = 0

    @property
    def kind(self) -> DeviceKind:
        """What kind of device it is."""
        return device_kind(self.device)

    @property
    def headroom_bytes(self) -> int:
        """What must stay free of the budget."""
        if isinstance(self.headroom, int):
            return self.headroom
        return int(self.budget_bytes * float(self.headroom.rstrip("%")) / 100)

    @property
    def capacity_bytes(self) -> int:
        """The budget less the headroom and what is taken, at least 0."""
        return max(0, self.budget_bytes - self.headroom_bytes - self.taken_bytes)

    @property
    def lacking_bytes(self) -> int:
        """What is missing for that which is taken."""
        return max(0, self.taken_bytes - max(0, self.budget_bytes - self.headroom_bytes))

    def more_bytes(self, room_bytes: int) -> int | None:
        """How much larger the budget must be for so much more room beside the headroom, which grows with it where it is a share;
        None where all of it is headroom.

        Example:
            >>> DeviceBudget(device=0, budget_bytes=100, headroom="10%", origin="user").more_bytes(90)
            100
        """
        wanted_bytes = self.capacity_bytes + room_bytes
        if isinstance(self.headroom, int):
            return wanted_bytes + self.headroom + self.taken_bytes - self.budget_bytes
        from fractions import Fraction  # only what does not fit needs it, and every command loads this module

        share = Fraction(self.headroom.rstrip("%")) / 100
        if share >= 1:
            return None
        enough = replace(self, budget_bytes=ceil((wanted_bytes + self.taken_bytes) / (1 - share)))
        while enough.capacity_bytes < wanted_bytes or enough.lacking_bytes:  # headroom is counted in floats
            enough = replace(enough, budget_bytes=enough.budget_bytes + 1)
        return enough.budget_bytes - self.budget_bytes


def with_taken(budgets: Iterable[DeviceBudget], taken_bytes: int) -> tuple[DeviceBudget, ...]:
    """Budgets of which so many bytes of the cpu's memory are taken, in whichever pool that is.

    Example:
        >>> budgets = [DeviceBudget(device=key, budget_bytes=100, headroom=0, origin="user") for key in (0, "cpu")]
        >>> [budget.capacity_bytes for budget in with_taken(budgets, 30)]
        [100, 70]
    """
    each = tuple(budgets)
    pools = {budget.pool for budget in each if budget.kind == "cpu" and budget.pool is not None}
    return tuple(
        replace(budget, taken_bytes=taken_bytes) if budget.kind == "cpu" or budget.pool in pools else budget
        for budget in each
    )


def device_budgets(
    max_memory: Mapping[DeviceKey, int],
    headroom: Mapping[DeviceKey, int | str] | None,
    offload_folder: str | os.PathLike[str] | None = None,
    known: Mapping[DeviceKey, int] | None = None,
) -> tuple[DeviceBudget, ...]:
    """Accelerators by number, then mps, cpu, disk: those that were named, or all that there are when none was.

    Args:
        max_memory: budgets in bytes; empty means detect.
        known: what devices have in place of what is detected: those of several computers.
        headroom: bytes, or a share of the budget as in "10%", by device; "all" stands for every device that has no word of
            its own. Without either, a tenth of what was detected and nothing of what was said.
        offload_folder: its disk is detected, too.

    Raises:
        InvalidDevicesError: two spellings of one device, or headroom of a device that has no budget. Fields: ``device``.
    """
    words = dict(headroom or {})
    default = words.pop(_ALL, 0 if max_memory else _DETECTED_HEADROOM)
    kept = {device: words[key] for key, device in _canonical(words).items()}
    if max_memory:
        named = _canonical(max_memory)
        found = [
            FreeMemory(device=named[key], free_bytes=size, origin="user") for key, size in max_memory.items()
        ]
    elif known:
        found = [
            FreeMemory(device=key, free_bytes=size, origin="the machine's memory_bytes")
            for key, size in known.items()
        ]
    else:
        found = [replace(free, origin=f"detected: {free.origin}") for free in free_devices(offload_folder)]
    there = {free.device for free in found}
    for device in kept:
        if device not in there:
            raise InvalidDevicesError(f"headroom for {device!r}, which has no budget", device=device)
    device_budgets = [
        DeviceBudget(
            device=free.device,
            budget_bytes=free.free_bytes,
            headroom=kept.get(free.device, default),
            origin=free.origin,
            pool=free.pool,
            name=free.name,
        )
        for free in found
    ]
    places = {device: place for place, device in enumerate(in_order(each.device for each in device_budgets))}
    return tuple(
        sorted(
            device_budgets,
            key=lambda budget: (
                _KIND_ORDER[budget.kind],
                isinstance(budget.device, str),
                places[budget.device],
            ),
        )
    )


def _canonical(keys: Iterable[DeviceKey]) -> dict[DeviceKey, DeviceKey]:
    named: dict[DeviceKey, DeviceKey] = {}
    for key in keys:
        device = plan_device(key)
        if device in named.values():
            raise InvalidDevicesError(f"{key!r} is named twice; {device!r} is the same device", device=key)
        named[key] = device
    return named
