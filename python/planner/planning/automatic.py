"""`plan()` with strategy `auto`: one problem for the search, or one for each row of many budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from planner.devices.budgets import with_taken
from planner.devices.keys import DeviceKey
from planner.errors import InfeasibleError
from planner.model.blocks import Blocks
from planner.model.constraints import allowed_devices
from planner.planning.device_rows import device_plan, offloaded_bytes
from planner.planning.problem import Problem
from planner.planning.replayed import replayed_peaks, settled
from planner.planning.running import RunningRooms, running_device
from planner.planning.uneven_shares import is_uneven, planned_unevenly
from planner.plans.device_map import DeviceMap
from planner.plans.parts import DevicePlan, PredictedPeaks
from planner.plans.plan import Plan
from planner.settings.schema import Auto
from planner.strategies.auto import AutoAnswer, AutoSearch, solve_in_parts
from planner.strategies.running import is_beyond
from planner.strategies.staying import StayingBuffers

_Masks = tuple[tuple[int, int], ...]  # by unit that may not lie everywhere, the devices where it may


def plan_auto(problem: Problem) -> Plan:
    """The plan that offloads least. Raises InfeasibleError."""
    if not is_uneven(problem):
        return _planned(problem)
    return planned_unevenly(problem, _planned, lambda relaxed: _solved(relaxed)[1])


def _planned(problem: Problem) -> Plan:
    return _plan(problem, *_solved(problem))


def _solved(problem: Problem) -> tuple[AutoSearch, AutoAnswer]:
    devices, blocks = _devices(problem), problem.blocks()

    def search_of(blocks: Blocks) -> AutoSearch:
        staying = StayingBuffers(blocks, problem.settings.offload_buffers)
        return _search(problem, staying, _masks(problem, blocks, devices))

    if problem.settings.granularity == "module" and not problem.settings.no_split_module_classes:
        names = [name for unit in blocks.unit_names for name in unit]
        return solve_in_parts(names, lambda split: search_of(problem.blocks(split) if split else blocks))
    search = search_of(blocks)
    return search, search.solve()


def plan_auto_many(problem: Problem, rows: Sequence[Mapping[DeviceKey, int]]) -> list[Plan | InfeasibleError]:
    """What :func:`plan_auto` makes of each row of budgets; the searches run on all cores."""
    problems = [problem.with_budgets(row) for row in rows]
    if any(map(is_uneven, problems)):
        return [_one_of_many(each) for each in problems]
    blocks = problem.blocks()
    devices = [_devices(each) for each in problems]
    masks_of = cache(partial(_masks, problem, blocks))  # rows may name different devices
    staying = StayingBuffers(blocks, problem.settings.offload_buffers)
    searches = [
        _search(each, staying, masks_of(named)) for each, named in zip(problems, devices, strict=True)
    ]
    by_masks: dict[_Masks, list[int]] = {}
    for number, search in enumerate(searches):
        by_masks.setdefault(search.masks, []).append(number)
    plans: dict[int, Plan | InfeasibleError] = {}
    for masks, numbers in by_masks.items():
        budgets = [searches[number].row() for number in numbers]
        demands = [searches[number].demands for number in numbers]
        results = blocks.columns.solve_many(budgets, list(masks), searches[0].options(), demands)
        for number, result in zip(numbers, results, strict=True):
            try:
                plans[number] = _plan(problems[number], searches[number], searches[number].read(result))
            except InfeasibleError as error:
                plans[number] = problem.noted(error)
    return [plans[number] for number in range(len(rows))]


def _one_of_many(problem: Problem) -> Plan | InfeasibleError:
    try:
        return plan_auto(problem)
    except InfeasibleError as error:
        return problem.noted(error)


def search_of_weights(problem: Problem, blocks: Blocks) -> AutoSearch:
    """The search for a place for weights, without what a workload takes beside them."""
    staying = StayingBuffers(blocks, problem.settings.offload_buffers)
    return _of_weights(problem, staying, _masks(problem, blocks, _devices(problem)))


def with_rooms(search: AutoSearch, rooms: RunningRooms) -> AutoSearch | None:
    """A search of weights alone with what a workload takes beside them; None where that is more than all devices have."""
    budgets = with_taken(search.device_budgets, rooms.most.resting_bytes)
    if is_beyond(search.blocks, rooms.most, budgets):
        return None
    return replace(search, demands=rooms.searched(search.staying, budgets), device_budgets=budgets)


def has_plan(search: AutoSearch, rooms: RunningRooms) -> bool:
    """Whether a problem has a plan with a workload: what :func:`plan_auto` finds, without the plan.

    Args:
        search: of weights alone.
        rooms: for the workload.
    """
    problem = with_rooms(search, rooms)
    if problem is None or problem.fits() is False:  # which is known sooner than what would help
        return False
    try:
        settled(problem, problem.solve(), rooms, search.staying)
    except InfeasibleError:
        return False
    return True


def _search(problem: Problem, staying: StayingBuffers, masks: _Masks) -> AutoSearch:
    rooms, search = problem.running_rooms(staying.blocks), _of_weights(problem, staying, masks)
    if rooms is not None:
        budgets = with_taken(search.device_budgets, rooms.most.resting_bytes)
        return replace(search, demands=rooms.searched(staying, budgets), device_budgets=budgets)
    if search.staging_blocks > 1 and staying.block_bytes:
        # Room for several blocks at once shrinks by more than the buffers of those that are offloaded take, so weights alone may
        # not fit where all of it does.
        return search.with_buffers()
    return search


def _of_weights(problem: Problem, staying: StayingBuffers, masks: _Masks) -> AutoSearch:
    chosen = problem.settings
    assert isinstance(chosen.strategy, Auto)
    return AutoSearch(
        blocks=staying.blocks,
        device_budgets=problem.device_budgets,
        masks=masks,
        fill=chosen.strategy.fill,
        search_steps=chosen.strategy.search_steps,
        mode=chosen.mode,
        execute_offloaded=chosen.execute_offloaded,
        staging_blocks=chosen.staging_blocks,
        staying=staying,
    )


def _masks(problem: Problem, blocks: Blocks, devices: tuple[DeviceKey, ...]) -> _Masks:
    return tuple(allowed_devices(blocks, problem.constraints, devices, problem.settings.mode))


def _devices(problem: Problem) -> tuple[DeviceKey, ...]:
    return tuple(budget.device for budget in problem.device_budgets)


def _plan(problem: Problem, search: AutoSearch, answer: AutoAnswer) -> Plan:
    running = problem.running_rooms(search.blocks)
    staying = search.staying
    if running is not None:
        search, answer, running = settled(search, answer, running, staying)
    buffer_bytes = staying.by_device(answer.displaced(), answer.execution_map) if answer.execution_map else {}
    devices = tuple(
        device_plan(budget, usage, usage.reserved_bytes, buffer_bytes.get(budget.device, 0))
        for budget, usage in zip(problem.device_budgets, answer.usage, strict=True)
    )
    if running is not None:
        by_device = running.of(answer)
        devices = tuple(running_device(device, by_device.get(device.id), running) for device in devices)
    idle = [device.id for device in devices if device.kind == "accelerator" and not device.used_bytes]
    return Plan(
        devices=devices,
        device_map=DeviceMap(answer.device_map, answer.execution_map),
        execution_map=dict(answer.execution_map),
        offloaded_bytes=offloaded_bytes(devices),
        certificate=answer.certificate,
        account=problem.account(
            search.blocks,
            (answer.device_map, answer.execution_map),
            reasons=answer.reasons,
            shortfall=answer.shortfall,
            minimum_bytes=lambda: dict.fromkeys(idle),
            demands=(lambda: None) if running is None else (lambda: running.most),
            predicted_peaks=_peaks_of(running, staying, answer, devices),
        ),
    )


def _peaks_of(
    running: RunningRooms | None,
    staying: StayingBuffers,
    answer: AutoAnswer,
    devices: tuple[DevicePlan, ...],
) -> Callable[[], PredictedPeaks]:
    if running is None:
        return dict
    if not running.runs:
        return partial(running.peaks, devices, answer)
    return lambda: replayed_peaks(running, staying, answer, devices)
