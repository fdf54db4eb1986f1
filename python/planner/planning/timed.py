"""`plan()` with the strategies that go by time: which device runs what, from where, so that a step takes least."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from planner.strategies.line_tables import LineProblem, Schedule
from planner.strategies.staying import StayingBuffers
from planner.strategies.timed import LineAnswer, LineRun, grouped_keys, solve_line

_MOST_CHOICES: Final = 64


def plan_timed(problem: Problem) -> Plan:
    """The plan whose step is modelled to take least. Raises InfeasibleError, and what :func:`planned_line` raises."""
    strategy = problem.settings.strategy
    assert isinstance(strategy, ByTime)
    whole = problem.blocks()
    found = []
    # What is whole is copied at once, which a line in parts does not know: so both are asked, and the better counts.
    is_apart = isinstance(strategy, Latency) and strategy.parts and problem.settings.granularity == "block"
    for blocks in (problem.blocks(in_parts=True), whole) if is_apart else (whole,):
        line = planned_line(problem, blocks)
        try:
            found.append((line, _answer(problem, line)))
        except InfeasibleError as error:
            failed = error
    if not found:
        raise failed
    line, answer = min(found, key=lambda each: each[1].value_ps)
    bound_ps = min(each.lower_bound_ps for _, each in found)
    return _TimedPlan(problem, line, replace(answer, lower_bound_ps=bound_ps)).plan()


def _answer(problem: Problem, line: PlannedLine) -> LineAnswer:
    """The best plan of a line. Raises InfeasibleError."""
    strategy = problem.settings.strategy
    assert isinstance(strategy, ByTime)
    schedule: Schedule = "serial" if problem.settings.staging_blocks == 1 else "overlapped"
    question = LineProblem(
        pieces=line.pieces(),
        kinds=line.line_kinds(),
        devices=line.device_kinds(),
        hop_ps=line.hop_table(),
        ties=line.ties(),
        objective=_objective(strategy),
        batches=strategy.microbatches if isinstance(strategy, Pipeline) else 1,
        any_order=strategy.order == "any",
        schedule=schedule,
        staging_blocks=problem.settings.staging_blocks,
        search_steps=strategy.search_steps,
    )
    try:
        return solve_line(question)
    except InfeasibleError as error:
        raise _infeasible(line, is_proven=bool(error.is_proven)) from error


def _objective(strategy: ByTime) -> Objective:
    return (
        "latency"
        if isinstance(strategy, Latency)
        else "pipeline"
        if isinstance(strategy, Pipeline)
        else "throughput"
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

    def __init__(self, problem: Problem, line: PlannedLine, answer: LineAnswer) -> None:
        self._problem, self._line, self._answer = problem, line, answer
        self._names = line.blocks.columns.block_names()
        self._stages: dict[int, DeviceKey] = {}
        self._ways: dict[int, PieceWay] = {}
        for run in answer.runs:
            for block, way in zip(range(run.first, run.end), run.ways, strict=True):
                self._stages[block], self._ways[block] = line.runners[run.device], way
        self._homes: dict[int, DeviceKey] = {}
        self._runs: dict[int, DeviceKey] = {}
        of_unit = {
            line.units[block]: self._stages[block] for block, way in self._ways.items() if way == "resident"
        }
        for block, way in self._ways.items():
            device = self._stages[block]
            if way == "tied":  # what shares its weights has them there
                device = of_unit[line.units[block]]
            self._homes[block] = device if way in ("resident", "tied") else line.home or device
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
            steps=self._answer.steps,
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
        problem, line, answer = self._problem, self._line, self._answer
        strategy = problem.settings.strategy
        assert isinstance(strategy, ByTime)
        batches = strategy.microbatches if isinstance(strategy, Pipeline) else 1
        pieces = tuple(self._piece(block) for block in range(len(self._names)))
        stages = tuple(
            TimedStage(
                device=line.runners[run.device],
                first=self._names[run.first][0],
                last=self._names[run.end - 1][0],
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
        blocks = range(run.first, run.end)
        more_ps = sum(
            pieces[block].fetch_ps - self._line.fetch_ps(block, self._runs[block], HOST)
            for block in blocks
            if self._homes[block] == "disk"
        )
        if self._problem.settings.staging_blocks == 1:
            return run.ps + more_ps
        return max(run.ps, sum(pieces[block].fetch_ps for block in blocks))

    def _piece(self, block: int) -> TimedPiece:
        line, stage, runner, way = self._line, self._stages[block], self._runs[block], self._ways[block]
        return TimedPiece(
            name=self._names[block][0],
            device=stage,
            way=way,
            run_ps=line.run_ps(block, runner),
            fetch_ps=line.fetch_ps(block, runner, self._homes[block]) if way == "fetched" else 0,
            hop_ps=line.hop_ps(stage, runner) + line.hop_ps(runner, stage),
        )


@dataclass(frozen=True, slots=True)
class _Maps:
    device_map: Mapping[str, DeviceKey]
    execution_map: Mapping[str, DeviceKey]
