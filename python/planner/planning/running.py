"""Planning with a workload: rooms for what runs, and the bytes that a plan says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import Protocol

from planner.choices import Phase, ShareCounting
from planner.devices.budgets import DeviceBudget
from planner.devices.keys import DeviceKey
from planner.memory.demands import Demands
from planner.memory.tape import RunBytes
from planner.planning.margins import margin_bytes, margin_of
from planner.plans.parts import DevicePlan, PredictedPeaks
from planner.plans.running import Running, running_by_device
from planner.strategies.running import CoreDemands, core_demands
from planner.strategies.staying import StayingBuffers


class Maps(Protocol):
    """An answer of a strategy: where blocks lie, and which run elsewhere."""

    @property
    def device_map(self) -> Mapping[str, DeviceKey]:
        """Names to devices."""

    @property
    def execution_map(self) -> Mapping[str, DeviceKey]:
        """Names to devices, for what runs elsewhere than it lies."""


@dataclass(frozen=True, kw_only=True)
class RunningRooms:
    """What a workload asks for on devices.

    Args:
        by_phase: what blocks need in each phase; of recordings, all of it in one.
        margin: what the allocator may take beyond, as the settings say it.
        runs: what was recorded, where anything was.
        main_needs_bytes: what is needed where the inputs lie, whatever runs there; it is in the needs of the first block, which may run
            elsewhere.
        beyond_bytes: by device, what a replay of a placement has found above what its blocks add up to.
        shares: how the search, which knows one share for all devices, counts margins that are a share of what runs there. "in_needs":
            the largest of them, in what each block needs, wherever it runs; "beside": each device gives up the most that its own can
            be. Both leave room for every margin. "not_at_all": only what no plan can do without.
    """

    by_phase: Mapping[Phase, Demands]
    margin: int | str | None
    runs: tuple[RunBytes, ...] = ()
    main_needs_bytes: int = 0
    beyond_bytes: Mapping[DeviceKey, int] = field(default_factory=dict)
    shares: ShareCounting = "in_needs"

    def searched(self, staying: StayingBuffers, budgets: Sequence[DeviceBudget]) -> CoreDemands:
        """The same as the search reads it: each device has room for what runs there and for the margin."""
        margins = [margin_of(budget.device, self.margin) for budget in budgets]
        is_in_needs = self.shares == "in_needs"
        share = max((margin.share for margin in margins), default=Fraction(0)) if is_in_needs else Fraction(0)
        beside: list[int] = []
        for budget, margin in zip(budgets, margins, strict=True):
            beyond_bytes = self.beyond_bytes.get(budget.device, 0)
            beside.append(margin.beside_bytes + ceil(beyond_bytes * (1 + share)))
            if self.shares == "beside":
                # All runs there; or as much as leaves room for the share of it.
                most = min(
                    Fraction(self._whole_bytes + beyond_bytes), budget.capacity_bytes / (1 + margin.share)
                )
                beside[-1] += ceil(most * margin.share)
        return core_demands(
            staying.blocks, self.most, share=share, beside_bytes=beside, staying_bytes=staying.block_bytes
        )

    @cached_property
    def _whole_bytes(self) -> int:
        """What running the whole model on one device takes there."""
        blocks = self.most.blocks.values()
        needs_bytes = max((demand.needs_bytes for demand in blocks), default=0)
        return self.most.shared_bytes + needs_bytes + sum(demand.exec_bytes for demand in blocks)

    @cached_property
    def most(self) -> Demands:
        """What no phase goes beyond."""
        return Demands.most_of(self.by_phase.values())

    def of(self, answer: Maps) -> dict[DeviceKey, Running]:
        """What running takes where an answer runs blocks, and where caches rest."""
        found = _running(self.most, answer)
        for device in found.keys() & self.beyond_bytes.keys():
            here = found[device]
            found[device] = replace(here, activation_bytes=here.activation_bytes + self.beyond_bytes[device])
        return found

    def peaks(self, devices: tuple[DevicePlan, ...], answer: Maps) -> PredictedPeaks:
        """By phase and device that runs anything, the most at one time."""
        found: dict[Phase, dict[DeviceKey, int]] = {}
        for phase, demands in self.by_phase.items():
            running = _running(demands, answer)
            found[phase] = {
                device.id: device.used_bytes
                + device.buffer_bytes
                + device.reserved_bytes
                + running[device.id].cache_bytes
                + running[device.id].activation_bytes
                for device in devices
                if device.id in running
            }
        return found


def _running(demands: Demands, answer: Maps) -> dict[DeviceKey, Running]:
    """By device, what running takes; on the cpu also what rests there of caches, whatever runs there."""
    found = running_by_device(demands, answer.device_map, answer.execution_map)
    if demands.resting_bytes:
        here = found.get("cpu", Running())
        found["cpu"] = replace(here, cache_bytes=here.cache_bytes + demands.resting_bytes)
    return found


def running_device(device: DevicePlan, running: Running | None, rooms: RunningRooms) -> DevicePlan:
    """A device of a plan with what runs there."""
    if running is None:
        return device
    both = running.cache_bytes + running.activation_bytes
    margin = margin_bytes(device.id, both, rooms.margin)
    free_bytes = None if device.free_bytes is None else device.free_bytes - both - margin
    return replace(
        device,
        cache_bytes=running.cache_bytes,
        activation_bytes=running.activation_bytes,
        margin_bytes=margin,
        free_bytes=free_bytes,
        peak_bytes=device.used_bytes + device.buffer_bytes + device.reserved_bytes + both,
    )
