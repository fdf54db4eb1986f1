"""`plan()` with the strategies that go by time: which device runs what, from where, so that a step takes least."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Final

from planner.choices import Objective, PieceWay
from planner.devices.keys import DeviceKey
from planner.errors import InfeasibleError
from planner.planning.device_rows import device_plan, offloaded_bytes
from planner.planning.line import HOST, PlannedLine
from planner.planning.line_problem import planned_line
from planner.planning.problem import Problem
from planner.planning.running import running_device
from planner.plans.device_map import DeviceMap
from planner.plans.parts import Certificate, DevicePlan, DeviceUsage, Reason
from planner.plans.plan import Plan
from planner.plans.timing import TimedPiece, TimedStage, Timing
from planner.settings.strategies import ByTime, Latency, Pipeline
from planner.strategies.line_tables import LinePiece, LineProblem, Schedule
from planner.strategies.staying import StayingBuffers
from planner.strategies.timed import LineAnswer, LineRun, grouped_keys, solve_line

_MOST_CHOICES: Final = 64


def plan_timed(problem: Problem) -> Plan:
    """The plan whose step is modelled to take least. Raises InfeasibleError, and what :func:`planned_line` raises."""
    strategy = problem.settings.strategy
    assert isinstance(strategy, ByTime)
    in_parts = isinstance(strategy, Latency) and strategy.parts and problem.settings.granularity == "block"
    blocks = problem.blocks(in_parts=True) if in_parts else problem.blocks()
    line = planned_line(problem, blocks)
    return _TimedPlan(problem, line, _best(problem, line)).plan()


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """A problem in which each unit stands in the line once: at the place of one of its blocks.

    Args:
        places: by piece of the line, its block.
        members: by block that has its unit's weights, the other blocks of the unit.
        answer: what the search found.
    """

    places: tuple[int, ...]
    members: Mapping[int, tuple[int, ...]]
    answer: LineAnswer


def _best(problem: Problem, line: PlannedLine) -> _Choice:
    """The best plan over all places of tied units. Raises InfeasibleError."""
    found: _Choice | None = None
    lower_bound_ps: int | None = None
    failed: InfeasibleError | None = None
    for heads in _heads(line):
        members = {unit[0]: unit[1:] for unit in heads}
        places = tuple(sorted(members))
        question = _question(problem, line, places, members)
        try:
            answer = solve_line(question)
        except InfeasibleError as error:
            failed = error if failed is None or not error.is_proven else failed
            continue
        bound = answer.lower_bound_ps
        lower_bound_ps = bound if lower_bound_ps is None else min(lower_bound_ps, bound)
        if found is None or answer.value_ps < found.answer.value_ps:
            found = _Choice(places=places, members=members, answer=answer)
    if found is None or lower_bound_ps is None:
        raise _infeasible(line, is_proven=failed is not None and bool(failed.is_proven))
    return replace(found, answer=replace(found.answer, lower_bound_ps=lower_bound_ps))


def _heads(line: PlannedLine) -> Iterator[list[tuple[int, ...]]]:
    """Ways of choosing a block for each unit, that block first. All of them up to 64; beyond, the block with most to do."""
    units: dict[int, list[int]] = {}
    for block, unit in enumerate(line.units):
        units.setdefault(unit, []).append(block)
    choices = [[(head, *(each for each in unit if each != head)) for head in unit] for unit in units.values()]
    count = 1
    for each in choices:
        count = min(_MOST_CHOICES + 1, count * len(each))
    if count > _MOST_CHOICES:
        choices = [[max(each, key=lambda unit: line.work[unit[0]].touched_bytes)] for each in choices]
    for chosen in product(*choices):
        yield list(chosen)


def _question(
    problem: Problem, line: PlannedLine, places: Sequence[int], members: Mapping[int, Sequence[int]]
) -> LineProblem:
    strategy = problem.settings.strategy
    assert isinstance(strategy, ByTime)
    pieces = line.pieces()
    schedule: Schedule = "serial" if problem.settings.staging_blocks == 1 else "overlapped"
    return LineProblem(
        pieces=tuple(_joined(line, pieces, block, members[block]) for block in places),
        kinds=line.line_kinds(),
        devices=line.device_kinds(),
        hop_ps=line.hop_table(),
        objective=_objective(strategy),
        batches=strategy.microbatches if isinstance(strategy, Pipeline) else 1,
        any_order=strategy.order == "any",
        schedule=schedule,
        staging_blocks=problem.settings.staging_blocks,
        search_steps=strategy.search_steps,
    )


def _objective(strategy: ByTime) -> Objective:
    return (
        "latency"
        if isinstance(strategy, Latency)
        else "pipeline"
        if isinstance(strategy, Pipeline)
        else "throughput"
    )


def _joined(line: PlannedLine, pieces: Sequence[LinePiece], head: int, others: Sequence[int]) -> LinePiece:
    """A unit in the place of one of its blocks; each other one runs there, too, at two hops."""
    piece = pieces[head]
    if not others:
        return piece
    each = [piece, *(pieces[other] for other in others)]
    run_ps = tuple(
        None
        if any(one.run_ps[kind] is None for one in each)
        else sum(one.run_ps[kind] or 0 for one in each) + len(others) * line.away_ps(keys[0])
        for kind, keys in enumerate(line.kinds)
    )
    fetch_ps = tuple(
        None
        if any(one.fetch_ps[kind] is None for one in each)
        else sum(one.fetch_ps[kind] or 0 for one in each)
        for kind in range(len(line.kinds))
    )
    return replace(
        piece,
        bits=sum(one.bits for one in each),
        state_bits=sum(one.state_bits for one in each),
        streamed_bits=sum(one.streamed_bits for one in each),
        homes=frozenset.intersection(*(one.homes for one in each)),
        run_ps=run_ps,
        fetch_ps=fetch_ps,
        host_ps=None,
    )


def _infeasible(line: PlannedLine, *, is_proven: bool) -> InfeasibleError:
    names = line.blocks.columns.block_names()
    largest = max(range(len(line.work)), key=lambda block: line.work[block].weight_bytes, default=0)
    said = "there is none" if is_proven else "none was found"
    return InfeasibleError(
        f"no plan in which each device runs one stretch of the model has room: {said}; more room, cpu or disk to offload to, or "
        "strategy 'auto', which may come back to a device, would help",
        block=names[largest][0] if names and names[largest] else "",
        device=None,
        shortfall_bytes=None,
        more_bytes={},
        best_partial={},
        is_proven=is_proven,
    )


class _TimedPlan:
    """An answer in names and bytes."""

    def __init__(self, problem: Problem, line: PlannedLine, choice: _Choice) -> None:
        self._problem, self._line, self._choice = problem, line, choice
        self._names = line.blocks.columns.block_names()
        self._homes: dict[int, DeviceKey] = {}
        self._runs: dict[int, DeviceKey] = {}
        self._ways: dict[int, PieceWay] = {}
        for run in choice.answer.runs:
            device = line.runners[run.device]
            for place, way in zip(range(run.first, run.end), run.ways, strict=True):
                head = choice.places[place]
                for block in (head, *choice.members[head]):
                    self._ways[block] = way
                    self._homes[block] = device if way == "resident" else line.home or device
                    self._runs[block] = HOST if way == "beside" else device
        self._has_spilled = self._spill()

    def _spill(self) -> bool:
        """Whether the host has no room for all that rests there: then what is fetched lies on the disk, from the end on.

        Raises InfeasibleError.
        """
        line = self._line
        if line.home != HOST:
            return False
        size = {block: line.work[block].weight_bytes for block in self._homes}
        on_host = sum(size[block] for block, home in self._homes.items() if home == HOST)
        room = line.capacity_bytes[HOST]
        for block in sorted(self._homes, reverse=True):
            if on_host <= room:
                break
            if self._ways[block] == "fetched" and self._homes[block] == HOST and line.has_disk:
                self._homes[block] = "disk"
                on_host -= size[block]
        if on_host > room:
            raise _infeasible(line, is_proven=False)
        return "disk" in self._homes.values()

    def plan(self) -> Plan:
        """The plan."""
        problem, line = self._problem, self._line
        device_map = grouped_keys(
            self._names, [self._homes[block] for block in range(len(self._names))], self._run_list()
        )
        execution_map = {name: run for name, (home, run) in device_map.items() if run != home}
        maps = _Maps({name: home for name, (home, _) in device_map.items()}, execution_map)
        devices = self._devices(maps)
        rooms = problem.running_rooms(line.blocks)
        return Plan(
            devices=devices,
            device_map=DeviceMap(maps.device_map, maps.execution_map),
            execution_map=execution_map,
            offloaded_bytes=offloaded_bytes(devices),
            certificate=self._certificate(sum(offloaded_bytes(devices).values())),
            account=problem.account(
                line.blocks,
                (maps.device_map, maps.execution_map),
                reasons=self._reasons,
                shortfall=lambda: None,
                minimum_bytes=dict,
                demands=lambda: None if rooms is None else rooms.most,
                predicted_peaks=lambda: {} if rooms is None else rooms.peaks(devices, maps),
            ),
            timing=self._timing(),
        )

    def _run_list(self) -> list[DeviceKey]:
        return [self._runs[block] for block in range(len(self._names))]

    def _devices(self, maps: _Maps) -> tuple[DevicePlan, ...]:
        problem, line = self._problem, self._line
        used: Counter[DeviceKey] = Counter()
        reserved: Counter[DeviceKey] = Counter()
        for block, home in self._homes.items():
            used[home] += line.work[block].weight_bytes
            if home != self._runs[block]:
                size = line.work[block].weight_bytes * problem.settings.staging_blocks
                reserved[self._runs[block]] = max(reserved[self._runs[block]], size)
        staying = StayingBuffers(line.blocks, problem.settings.offload_buffers)
        displaced = [
            name
            for block, home in self._homes.items()
            if home != self._runs[block]
            for name in self._names[block]
        ]
        buffers = staying.by_device(displaced, maps.execution_map)
        rooms = problem.running_rooms(line.blocks)
        running = {} if rooms is None else rooms.of(maps)
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

    def _certificate(self, offloaded: int) -> Certificate:
        """Of bytes nothing is known but that no plan offloads less than nothing; of time, see the timing."""
        strategy = self._problem.settings.strategy
        assert isinstance(strategy, ByTime)
        return Certificate(
            proven=offloaded == 0,
            lower_bound_bytes=0,
            gap_bytes=offloaded,
            returns=0,
            returns_lower_bound=0,
            steps=self._choice.answer.steps,
            stage=_objective(strategy),
        )

    def _reasons(self) -> tuple[Reason, ...]:
        line = self._line
        return tuple(
            Reason(
                rule="resident" if self._ways[block] == "resident" else "offloaded",
                name=self._names[block][0],
                device=self._homes[block],
                needed_bytes=line.work[block].weight_bytes,
                available_bytes=None,
            )
            for block in range(len(self._names))
            if self._names[block]
        )

    def _timing(self) -> Timing:
        problem, line, choice = self._problem, self._line, self._choice
        strategy, answer = problem.settings.strategy, choice.answer
        assert isinstance(strategy, ByTime)
        batches = strategy.microbatches if isinstance(strategy, Pipeline) else 1
        pieces = tuple(self._piece(block) for block in range(len(self._names)))
        stages = tuple(
            TimedStage(
                device=line.runners[run.device],
                first=self._names[choice.places[run.first]][0],
                last=self._names[choice.places[run.end - 1]][0],
                ps=self._slower_ps(run, pieces) if self._has_spilled else run.ps,
            )
            for run in answer.runs
        )
        # What the disk adds was not in the search: its bound still holds, and its value does not.
        latency_ps = (
            answer.latency_ps + sum(stage.ps for stage in stages) - sum(run.ps for run in answer.runs)
        )
        bottleneck_ps = max(stage.ps for stage in stages)
        objective = _objective(strategy)
        return Timing(
            objective=objective,
            tokens=line.sizes.tokens,
            batches=batches,
            value_ps=bottleneck_ps
            if objective == "throughput"
            else latency_ps + (batches - 1) * bottleneck_ps,
            lower_bound_ps=answer.lower_bound_ps,
            latency_ps=latency_ps,
            bottleneck_ps=bottleneck_ps,
            stages=stages,
            pieces=pieces,
            machine=line.machine.fingerprint,
            from_table=line.table_devices,
        )

    def _slower_ps(self, run: LineRun, pieces: Sequence[TimedPiece]) -> int:
        """A run of which some is fetched from the disk."""
        choice = self._choice
        blocks = [
            block
            for place in range(run.first, run.end)
            for block in (choice.places[place], *choice.members[choice.places[place]])
        ]
        more_ps = sum(
            pieces[block].fetch_ps - self._line.fetch_ps(block, self._runs[block], HOST)
            for block in blocks
            if self._homes[block] == "disk"
        )
        if self._problem.settings.staging_blocks == 1:
            return run.ps + more_ps
        return max(run.ps, sum(pieces[block].fetch_ps for block in blocks))

    def _piece(self, block: int) -> TimedPiece:
        line, run, way = self._line, self._runs[block], self._ways[block]
        device = self._device_of_run(block)
        return TimedPiece(
            name=self._names[block][0],
            device=device,
            way=way,
            run_ps=line.run_ps(block, run),
            fetch_ps=line.fetch_ps(block, run, self._homes[block]) if way == "fetched" else 0,
            hop_ps=line.beside_ps(device) if way == "beside" else 0,
        )

    def _device_of_run(self, block: int) -> DeviceKey:
        return self._stage_devices[block]

    @cached_property
    def _stage_devices(self) -> Mapping[int, DeviceKey]:
        choice, found = self._choice, {}
        for run in choice.answer.runs:
            for place in range(run.first, run.end):
                head = choice.places[place]
                for block in (head, *choice.members[head]):
                    found[block] = self._line.runners[run.device]
        return found


@dataclass(frozen=True, slots=True)
class _Maps:
    device_map: Mapping[str, DeviceKey]
    execution_map: Mapping[str, DeviceKey]
