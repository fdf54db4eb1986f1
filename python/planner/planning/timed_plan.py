"""An answer of a search by time as a plan: names, bytes on devices, reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from planner.devices.keys import DeviceKey
from planner.planning.device_rows import device_plan, offloaded_bytes
from planner.planning.line import PlannedLine
from planner.planning.line_placement import LinePlacement
from planner.planning.problem import Problem
from planner.planning.running import RunningRooms, running_device
from planner.planning.step_times import objective_of, timing_of
from planner.plans.device_map import DeviceMap
from planner.plans.parts import Certificate, DevicePlan, DeviceUsage, PredictedPeaks, Reason
from planner.plans.plan import Plan
from planner.plans.running import Running
from planner.plans.timing import Timing
from planner.settings.strategies import ByTime, Latency
from planner.strategies.timed import LineAnswer, grouped_keys

__all__ = ["TimedPlan"]


class TimedPlan:
    """An answer in names and bytes.

    Args:
        problem: with a strategy that goes by time.
        line: its line.
        answer: of a search of the line.
    """

    def __init__(self, problem: Problem, line: PlannedLine, answer: LineAnswer) -> None:
        self._problem, self._line, self._answer = problem, line, answer
        self._placement = LinePlacement(line, answer)

    @property
    def lacking_bytes(self) -> int:
        """What the search leaves on the host beyond the room there; below 0 where room is left."""
        return self._placement.lacking_bytes

    @property
    def has_room(self) -> bool:
        """Whether the host has room for what rests there, the rest on the disk."""
        return self._placement.has_room

    @cached_property
    def timing(self) -> Timing:
        """What it takes."""
        is_overlapped = self._problem.settings.staging_blocks > 1
        return timing_of(self._placement, self._strategy, is_overlapped=is_overlapped)

    @property
    def value_ps(self) -> int:
        """What counts of it."""
        is_as_found = isinstance(self._strategy, Latency) and self.lacking_bytes <= 0
        return self._answer.value_ps if is_as_found else self.timing.value_ps

    @property
    def lower_bound_ps(self) -> int:
        """No plan of its line takes less."""
        return self._answer.lower_bound_ps

    def bounded(self, lower_bound_ps: int) -> TimedPlan:
        """The same, of which more is known. Args: ``lower_bound_ps``: no plan of its line takes less."""
        lower_bound_ps = min(lower_bound_ps, self.value_ps)
        if lower_bound_ps == self._answer.lower_bound_ps:
            return self
        answer = replace(self._answer, lower_bound_ps=lower_bound_ps)
        return TimedPlan(self._problem, self._line, answer)

    def plan(self, lower_bound_ps: int) -> Plan:
        """The plan. Args: ``lower_bound_ps``: no other takes less."""
        problem, blocks = self._problem, self._line.blocks
        device_map = grouped_keys(blocks.block_names, *self._placement.by_block())
        execution_map = {name: run for name, (home, run) in device_map.items() if run != home}
        homes = {name: home for name, (home, _) in device_map.items()}
        maps = _Maps(DeviceMap(homes, execution_map, self.timing.host_steps), execution_map)
        devices = self._devices(maps)
        rooms = problem.running_rooms(blocks)
        offloaded = offloaded_bytes(devices)
        return Plan(
            devices=devices,
            device_map=maps.device_map,
            execution_map=execution_map,
            offloaded_bytes=offloaded,
            certificate=self._certificate(sum(offloaded.values())),
            account=problem.account(
                blocks,
                (maps.device_map, maps.execution_map),
                reasons=self._reasons,
                shortfall=lambda: None,
                minimum_bytes=dict,
                demands=lambda: None if rooms is None else rooms.most,
                predicted_peaks=lambda: {} if rooms is None else self._peaks(rooms, devices, maps),
            ),
            timing=replace(self.timing, lower_bound_ps=lower_bound_ps),
        )

    @property
    def _strategy(self) -> ByTime:
        strategy = self._problem.settings.strategy
        assert isinstance(strategy, ByTime)
        return strategy

    def _devices(self, maps: _Maps) -> tuple[DevicePlan, ...]:
        problem, line, placement = self._problem, self._line, self._placement
        used: Counter[DeviceKey] = Counter()
        reserved: Counter[DeviceKey] = Counter()
        for work, home in zip(line.work, placement.homes, strict=True):
            used[home] += work.weight_bytes
        for block in placement.staged():
            stage, size = placement.stages[block], line.work[block].weight_bytes
            reserved[stage] = max(reserved[stage], size * problem.settings.staging_blocks)
        names = [name for block in placement.displaced() for name in line.names[block]]
        buffers = line.staying.by_device(names, maps.execution_map)
        rooms = problem.running_rooms(line.blocks)
        running = {} if rooms is None else self._running(rooms, maps)
        found = []
        for budget in problem.device_budgets:
            usage = DeviceUsage(
                device=budget.device,
                budget_bytes=budget.capacity_bytes,
                used_bytes=used[budget.device],
                reserved_bytes=reserved[budget.device],
            )
            device = device_plan(budget, usage, reserved[budget.device], buffers.get(budget.device, 0))
            found.append(
                device if rooms is None else running_device(device, running.get(budget.device), rooms)
            )
        return tuple(found)

    def _peaks(self, rooms: RunningRooms, devices: tuple[DevicePlan, ...], maps: _Maps) -> PredictedPeaks:
        """The most on each device; of the prompt, with what is brought in for it."""
        found = rooms.peaks(devices, maps)
        prompt = rooms.peaks(devices, maps.in_step(self._line.sizes.longest_tokens))
        return {phase: (prompt if phase == "prefill" else found)[phase] for phase in found}

    def _running(self, rooms: RunningRooms, maps: _Maps) -> dict[DeviceKey, Running]:
        """What running takes at the most: in a step like the plan's, and in one in which all is brought in that longer ones bring in."""
        found = rooms.of(maps)
        longest = maps.in_step(self._line.sizes.longest_tokens)
        for device, long in {} if longest == maps else rooms.of(longest).items():
            here = found.get(device)
            if here is None or long.activation_bytes > here.activation_bytes:
                found[device] = replace(long, cache_bytes=here.cache_bytes if here else long.cache_bytes)
        return found

    def _certificate(self, offloaded: int) -> Certificate:
        """Of bytes nothing is known but that no plan offloads less than nothing; of time, see the timing."""
        return Certificate(
            proven=offloaded == 0,
            lower_bound_bytes=0,
            gap_bytes=offloaded,
            returns=0,
            returns_lower_bound=0,
            steps=self._answer.steps,
            stage=objective_of(self._strategy),
        )

    def _reasons(self) -> tuple[Reason, ...]:
        line, placement = self._line, self._placement
        fused = {name for name, _ in line.blocks.fused_experts}
        room_bytes = {budget.device: budget.capacity_bytes for budget in line.budgets}
        together = (
            Reason(
                rule="experts_as_part",
                name=names[0],
                device=placement.homes[block],
                needed_bytes=line.work[block].weight_bytes,
                available_bytes=room_bytes.get(placement.homes[block]),
            )
            for block, names in enumerate(line.names)
            if fused.intersection(names)
        )
        placed = (
            Reason(
                rule="resident" if placement.ways[block] == "resident" else "offloaded",
                name=names[0],
                device=placement.homes[block],
                needed_bytes=line.work[block].weight_bytes,
                available_bytes=room_bytes.get(placement.homes[block]),
            )
            for block, names in enumerate(line.names)
            if names
        )
        return (*together, *placed)


@dataclass(frozen=True, slots=True)
class _Maps:
    device_map: DeviceMap
    execution_map: Mapping[str, DeviceKey]

    def in_step(self, tokens: int) -> _Maps:
        """The same in a step of so many new tokens."""
        return replace(self, execution_map=self.device_map.elsewhere(tokens))
