"""The replay of a placement: what it predicts, and room for what a placement needs above what its blocks add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from planner.choices import Phase
from planner.devices.keys import DeviceKey, main_device
from planner.errors import InfeasibleError
from planner.memory.replay import RunPlacement, replay, totals
from planner.names import device_of
from planner.planning.brought_in import brought_in
from planner.planning.running import RunningRooms
from planner.plans.parts import DevicePlan, PredictedPeaks
from planner.strategies.auto import AutoAnswer, AutoSearch, certified
from planner.strategies.staying import StayingBuffers

__all__ = ["replayed_peaks", "settled"]

# From here on, what is missing is doubled, so that it ends soon.
_PATIENT_ROUNDS: Final = 3
_PHASES: Final[tuple[Phase, ...]] = ("prefill", "decode")


def replayed_peaks(
    rooms: RunningRooms,
    staying: StayingBuffers,
    answer: AutoAnswer,
    devices: Sequence[DevicePlan],
) -> PredictedPeaks:
    """The most on each device in each phase of the workload, with what is copied ahead into free memory.

    Cost: O(events of the recordings).
    """
    room = {device.id: device.reserved_bytes + (device.free_bytes or 0) for device in devices}
    found = _peaks(rooms, staying, answer, room)
    return {
        phase: {device: size for device, size in peaks.items() if device in room}
        for phase, peaks in found.items()
    }


def settled(
    search: AutoSearch, answer: AutoAnswer, rooms: RunningRooms, staying: StayingBuffers
) -> tuple[AutoSearch, AutoAnswer, RunningRooms]:
    """The search, its answer and the rooms, such that a replay finds no device above what its blocks add up to, with what the
    model's caller needs where the inputs lie.

    Raises:
        InfeasibleError: no plan with room for that was found.
    """
    bound_bytes, steps = answer.certificate.lower_bound_bytes, answer.certificate.steps
    rounds = 0
    while missing := _missing(rooms, staying, answer):
        rounds += 1
        more = {device: size << max(0, rounds - _PATIENT_ROUNDS) for device, size in missing.items()}
        beyond = {
            device: rooms.beyond_bytes.get(device, 0) + more.get(device, 0)
            for device in {**rooms.beyond_bytes, **more}
        }
        rooms = replace(rooms, beyond_bytes=beyond)
        search = replace(search, demands=rooms.searched(staying, search.device_budgets))
        try:
            answer = search.solve()
        except InfeasibleError as error:
            # What is missing was found for one placement; another might not miss it.
            raise InfeasibleError(error.message, **{**error.fields, "is_proven": False}) from error
        steps += answer.certificate.steps
    return search, certified(answer, bound_bytes, steps) if rounds else answer, rooms


def _missing(rooms: RunningRooms, staying: StayingBuffers, answer: AutoAnswer) -> dict[DeviceKey, int]:
    """By device that runs anything, what a replay needs beyond what the plan counts."""
    if not rooms.runs:
        return _missing_on_main(rooms, answer)
    reserved = {usage.device: usage.reserved_bytes for usage in answer.usage}
    buffers, running = staying.by_device(answer.displaced(), answer.execution_map), rooms.of(answer)
    found: dict[DeviceKey, int] = {}
    peaks = _peaks(rooms, staying, answer, reserved, beside_bytes=rooms.main_needs_bytes)
    for usage in answer.usage:
        if usage.device in running:
            here = running[usage.device]
            counted = usage.used_bytes + buffers.get(usage.device, 0) + usage.reserved_bytes
            counted += here.cache_bytes + here.activation_bytes
            most = max((by_device.get(usage.device, 0) for by_device in peaks.values()), default=0)
            if most > counted:
                found[usage.device] = most - counted
    return found


def _missing_on_main(rooms: RunningRooms, answer: AutoAnswer) -> dict[DeviceKey, int]:
    """The same where no replay tells it: what is needed where the inputs lie, beyond the most that a block needs there."""
    if not rooms.main_needs_bytes:
        return {}
    running = rooms.of(answer)
    main = _main_device(answer, tuple(running))
    counted = rooms.most.blocks[running[main].largest].needs_bytes + rooms.beyond_bytes.get(main, 0)
    return {main: rooms.main_needs_bytes - counted} if rooms.main_needs_bytes > counted else {}


def _peaks(
    rooms: RunningRooms,
    staying: StayingBuffers,
    answer: AutoAnswer,
    room_bytes: Mapping[DeviceKey, int],
    beside_bytes: int = 0,
) -> PredictedPeaks:
    placement = _placement(rooms, staying, answer, room_bytes, beside_bytes)
    found: dict[Phase, dict[DeviceKey, int]] = {}
    for run in rooms.runs:
        by_phase = totals(replay(run, placement))
        for phase in _PHASES:
            for device, size in by_phase.get(phase, {}).items():
                most = found.setdefault(phase, {})
                most[device] = max(size, most.get(device, 0))
    return found


def _main_device(answer: AutoAnswer, running: Sequence[DeviceKey]) -> DeviceKey:
    """Where dispatch takes the inputs: the first accelerator that holds anything, if something runs there."""
    main = main_device(answer.device_map.values())
    return main if main in running or not running else running[0]


def _placement(
    rooms: RunningRooms,
    staying: StayingBuffers,
    answer: AutoAnswer,
    room_bytes: Mapping[DeviceKey, int],
    beside_bytes: int,
) -> RunPlacement:
    stays = staying.of(answer.displaced(), answer.execution_map)
    execution: dict[str, DeviceKey] = {}
    offloaded: list[str] = []
    for name in rooms.most.blocks:
        home, runs = device_of(name, answer.device_map), device_of(name, answer.execution_map)
        device = home if runs is None else runs
        if device is None:
            continue
        execution[name] = device
        if runs is not None and runs != home:
            offloaded.append(name)
    brought = brought_in(staying, offloaded, execution, stays)
    resident = {usage.device: usage.used_bytes for usage in answer.usage}
    for device, size in staying.by_device(answer.displaced(), answer.execution_map).items():
        resident[device] += size
    return RunPlacement(
        execution=execution,
        main_device=_main_device(answer, tuple(execution.values())),
        resident_bytes=resident,
        offloaded_bytes=brought.block_bytes,
        never_ahead_bytes=brought.never_ahead_bytes,
        room_bytes=room_bytes,
        beside_bytes=beside_bytes,
        is_order_known=True,  # of many prompts, one is the first
    )
