"""`plan()` with the strategies that go by time: which device runs what, from where, so that a step takes least."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from planner.choices import Objective, PieceWay
from planner.devices.keys import DeviceKey
from planner.errors import InfeasibleError
from planner.planning.device_rows import device_plan, offloaded_bytes
from planner.planning.host_room import answers_of, answers_with_less_on_the_host
from planner.planning.line import PlannedLine
from planner.planning.line_problem import planned_line
from planner.planning.line_sizes import HOST
from planner.planning.problem import Problem
from planner.planning.running import RunningRooms, running_device
from planner.plans.device_map import DeviceMap
from planner.plans.parts import Certificate, DevicePlan, DeviceUsage, PredictedPeaks, Reason
from planner.plans.plan import Plan
from planner.plans.running import Running
from planner.plans.timing import TimedPiece, TimedStage, Timing
from planner.settings.strategies import ByTime, Latency, Pipeline
from planner.strategies.line_tables import LineProblem, Schedule
from planner.strategies.staying import StayingBuffers
from planner.strategies.timed import LineAnswer, grouped_keys, solve_line


def plan_timed(problem: Problem) -> Plan:
    """The plan whose step is modelled to take least. Raises InfeasibleError, and what :func:`planned_line` raises."""
    strategy = problem.settings.strategy
    assert isinstance(strategy, ByTime)
    whole = problem.blocks()
    found: list[_TimedPlan] = []
    is_known = True
    # What is whole is copied at once, which a line in parts does not know: so both are asked, and the better counts.
    is_apart = isinstance(strategy, Latency) and strategy.parts and problem.settings.granularity == "block"
    for blocks in (problem.blocks(in_parts=True), whole) if is_apart else (whole,):
        try:
            found.append(_best(problem, planned_line(problem, blocks)))
        except InfeasibleError as error:
            failed, is_known = error, is_known and bool(error.is_proven)
    if not found:
        raise failed
    best = min(found, key=lambda each: each.timing.value_ps)
    # Where nothing was found, and nothing proven either, nothing is known.
    return best.plan(min(each.timing.lower_bound_ps for each in found) if is_known else 0)


def _best(problem: Problem, line: PlannedLine) -> _TimedPlan:
    """The best plan of a line. Raises InfeasibleError."""
    strategy = problem.settings.strategy
    assert isinstance(strategy, ByTime)
    question = LineProblem(
        pieces=line.pieces(),
        kinds=line.line_kinds(),
        devices=line.device_kinds(),
        hop_ps=line.hop_table(),
        ties=line.ties(),
        objective=_objective(strategy),
        batches=strategy.microbatches if isinstance(strategy, Pipeline) else 1,
        any_order=strategy.order == "any",
        schedule=_schedule(problem),
        staging_blocks=problem.settings.staging_blocks,
        search_steps=strategy.search_steps,
    )
    try:
        first = solve_line(question)
    except InfeasibleError as error:
        raise _infeasible(line, is_proven=bool(error.is_proven)) from error
    best = _TimedPlan(problem, line, first)
    plans = [best]
    if question.objective != "latency" and best.timing.bottleneck_ps > first.bottleneck_ps:
        # What has a state, if only a bit, runs where it lies: no device works for the runs of others then.
        alone = tuple(replace(piece, state_bits=max(1, piece.state_bits)) for piece in question.pieces)
        plans += _plans(problem, line, answers_of(replace(question, pieces=alone)), first.lower_bound_ps)

    def is_over(answer: LineAnswer) -> bool:
        return _TimedPlan(problem, line, answer).is_over

    if best.is_over:
        less = answers_with_less_on_the_host(question, line, is_over)
        plans += _plans(problem, line, less, first.lower_bound_ps)
    having_room = [plan for plan in plans if plan.has_room]
    if not having_room:
        raise _infeasible(line, is_proven=False)
    return min(having_room, key=lambda plan: plan.timing.value_ps)


def _plans(
    problem: Problem, line: PlannedLine, answers: Iterable[LineAnswer], lower_bound_ps: int
) -> Iterator[_TimedPlan]:
    for answer in answers:
        yield _TimedPlan(problem, line, replace(answer, lower_bound_ps=lower_bound_ps))


def _schedule(problem: Problem) -> Schedule:
    return "serial" if problem.settings.staging_blocks == 1 else "overlapped"


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
            self._homes[block] = device if way in ("resident", "tied") else line.rests(block) or device
            self._runs[block] = HOST if way == "beside" else device
        self._host_bytes = line.capacity_bytes.get(HOST, 0)
        self.is_over = self._on_host_bytes > self._host_bytes
        self._spill()
        self.has_room = self._on_host_bytes <= self._host_bytes

    @property
    def _on_host_bytes(self) -> int:
        return sum(self._line.work[block].weight_bytes for block, home in self._homes.items() if home == HOST)

    def _spill(self) -> None:
        """Where the host has no room for all that rests there, what is fetched lies on the disk, from the end on, if it may."""
        line, members = self._line, dict[int, list[int]]()
        for block in self._homes:
            members.setdefault(line.units[block], []).append(block)
        on_host = self._on_host_bytes
        for unit in sorted(members.values(), key=max, reverse=True):  # what shares its weights has one home
            if on_host <= self._host_bytes:
                return
            if all(
                self._ways[each] == "fetched" and self._homes[each] == HOST and line.may_spill(each)
                for each in unit
            ):
                self._homes.update(dict.fromkeys(unit, "disk"))
                on_host -= sum(line.work[each].weight_bytes for each in unit)

    def plan(self, lower_bound_ps: int) -> Plan:
        """The plan. Args: ``lower_bound_ps``: no other takes less."""
        problem, line = self._problem, self._line
        device_map = grouped_keys(
            self._names, [self._homes[block] for block in range(len(self._names))], self._run_list()
        )
        execution_map = {name: run for name, (home, run) in device_map.items() if run != home}
        homes = {name: home for name, (home, _) in device_map.items()}
        maps = _Maps(DeviceMap(homes, execution_map, self.timing.host_steps), execution_map)
        devices = self._devices(maps)
        rooms = problem.running_rooms(line.blocks)
        return Plan(
            devices=devices,
            device_map=maps.device_map,
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
                predicted_peaks=lambda: {} if rooms is None else self._peaks(rooms, devices, maps),
            ),
            timing=replace(self.timing, lower_bound_ps=lower_bound_ps),
        )

    def _run_list(self) -> list[DeviceKey]:
        return [self._runs[block] for block in range(len(self._names))]

    def _devices(self, maps: _Maps) -> tuple[DevicePlan, ...]:
        problem, line = self._problem, self._line
        used: Counter[DeviceKey] = Counter()
        reserved: Counter[DeviceKey] = Counter()
        for block, home in self._homes.items():
            used[home] += line.work[block].weight_bytes
            stage, size = self._stages[block], line.work[block].weight_bytes * problem.settings.staging_blocks
            is_kept = self._ways[block] == "beside" and line.host_up_to_tokens(block, stage) is not None
            if home != self._runs[block] or is_kept:
                reserved[stage] = max(reserved[stage], size)
        staying = StayingBuffers(line.blocks, problem.settings.offload_buffers)
        displaced = [
            name
            for block, home in self._homes.items()
            if home != self._runs[block]
            for name in self._names[block]
        ]
        buffers = staying.by_device(displaced, maps.execution_map)
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

    @cached_property
    def timing(self) -> Timing:
        """What it takes."""
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
                ps=self._stage_ps(pieces[run.first : run.end]),
            )
            for run in answer.runs
        )
        # What the disk adds was not in the search: its bound still holds, and its value does not.
        hops_ps = sum(line.hop_ps(one.device, other.device) for one, other in pairwise(stages))
        latency_ps = hops_ps + sum(stage.ps for stage in stages)
        busy_ps: Counter[DeviceKey] = Counter()
        for stage in stages:
            busy_ps[stage.device] += stage.ps
        for block, piece in enumerate(pieces):  # nor was what a device runs for the runs of others
            if self._runs[block] != piece.device:
                busy_ps[self._runs[block]] += piece.run_ps
        bottleneck_ps = max(busy_ps.values(), default=0)
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

    def _stage_ps(self, pieces: Sequence[TimedPiece]) -> int:
        run_ps = sum(piece.run_ps + piece.hop_ps for piece in pieces)
        fetch_ps = sum(piece.fetch_ps for piece in pieces)
        return run_ps + fetch_ps if _schedule(self._problem) == "serial" else max(run_ps, fetch_ps)

    def _piece(self, block: int) -> TimedPiece:
        line, stage, runner, way = self._line, self._stages[block], self._runs[block], self._ways[block]
        return TimedPiece(
            name=self._names[block][0],
            device=stage,
            way=way,
            run_ps=line.run_ps(block, runner),
            fetch_ps=line.fetch_ps(block, runner, self._homes[block]) if way == "fetched" else 0,
            hop_ps=line.hop_ps(stage, runner) + line.hop_ps(runner, stage),
            host_up_to_tokens=line.host_up_to_tokens(block, stage) if way == "beside" else None,
        )


@dataclass(frozen=True, slots=True)
class _Maps:
    device_map: DeviceMap
    execution_map: Mapping[str, DeviceKey]

    def in_step(self, tokens: int) -> _Maps:
        """The same in a step of so many new tokens."""
        return replace(self, execution_map=self.device_map.elsewhere(tokens))
