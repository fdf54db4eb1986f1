"""`plan()` with the strategies that go by time: which device runs what, from where, so that a step takes least."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Final

from planner.devices.nodes import node_of
from planner.errors import InfeasibleError
from planner.planning.beside_auto import plans_of_auto
from planner.planning.engines import has_host
from planner.planning.host_room import answers_of, answers_with_less_on_the_host
from planner.planning.largest_cache import wants_cache, with_most_cache
from planner.planning.line import PlannedLine
from planner.planning.line_problem import planned_line
from planner.planning.problem import Problem
from planner.planning.step_times import batches_of, objective_of
from planner.planning.timed_plan import TimedPlan
from planner.plans.plan import Plan
from planner.plans.timing import Timing
from planner.settings.strategies import ByTime, Latency
from planner.strategies.line_tables import LineProblem
from planner.strategies.timed import LineAnswer, solve_line

_MOST_FOR_LONG_STEPS: Final = Fraction(11, 10)
"""What a step may take in comparison, for the sake of longer ones."""


def plan_timed(problem: Problem) -> Plan:
    """The plan whose step is modelled to take least. Raises InfeasibleError, and what :func:`planned_line` raises."""
    strategy = problem.settings.strategy
    assert isinstance(strategy, ByTime)
    whole = problem.blocks()
    has_parts = problem.settings.engine is None or has_host(problem.settings.engine)
    is_apart = (
        isinstance(strategy, Latency)
        and strategy.parts
        and problem.settings.granularity == "block"
        and has_parts
    )
    blocks = (problem.blocks(in_parts=True), whole) if is_apart else (whole,)
    if whole.fused_experts:  # which cannot be taken apart by expert, but lie apart together
        blocks = (problem.blocks(in_parts=True),)
    # Those have the host run layers with their caches.
    is_free = strategy.long_steps != "fetch_all" and problem.settings.engine is None
    is_free = is_free and not wants_cache(problem.settings)
    best_of_auto = cache(lambda: _best_of_auto(problem) if is_free else None)
    best, least_ps = _best_for_long_steps(
        problem, [planned_line(problem, each) for each in blocks], best_of_auto
    )
    if problem.settings.workload is not None or best.value_ps > least_ps or _is_bound(problem):
        # What is needed at once comes off every device here, and there off those that run it; and their runs may be several.
        other = best_of_auto()
        if other is not None and _value_ps(other) < best.value_ps:
            return replace(other, timing=_bounded(other, least_ps))
    return best.plan(least_ps)


def _is_bound(problem: Problem) -> bool:
    """Whether blocks are pinned or kept away, which may cut what one run a device would have in one piece."""
    wanted = problem.constraints
    return isinstance(problem.settings.strategy, Latency) and bool(wanted.pin or wanted.forbid)


def _best_of_auto(problem: Problem) -> Plan | None:
    return min(plans_of_auto(problem), key=_value_ps, default=None)


def _value_ps(plan: Plan) -> int:
    assert plan.timing is not None
    return plan.timing.value_ps


def _bounded(plan: Plan, least_ps: int) -> Timing:
    """Of a plan of `auto`: it is the best of one more than those with one run a device, if it is below their bound."""
    assert plan.timing is not None
    return replace(plan.timing, lower_bound_ps=min(least_ps, plan.timing.value_ps))


def _best_for_long_steps(
    problem: Problem, lines: Sequence[PlannedLine], best_of_auto: Callable[[], Plan | None]
) -> tuple[TimedPlan, int]:
    """The best plan with room for what longer steps bring in; without, where that room costs this step too much. And what no plan is
    below. Raises InfeasibleError."""
    if not any(line.keeps_room() for line in lines):
        return _best_of(problem, lines)
    without = [line.for_this_step() for line in lines]
    try:
        ready = _best_of(problem, lines)
    except InfeasibleError:
        return _best_of(problem, without)
    try:
        free = _best_of(problem, without)
    except InfeasibleError:  # what was not found with more room, though it is there
        return ready
    ready_ps, free_ps = ready[0].value_ps, free[0].value_ps
    if ready_ps <= free_ps:
        return ready
    if ready_ps > free_ps * _MOST_FOR_LONG_STEPS:
        return free
    other = best_of_auto()  # which keeps no such room, and must not be better
    return free if other is not None and _value_ps(other) < ready_ps else ready


def _best_of(problem: Problem, lines: Sequence[PlannedLine]) -> tuple[TimedPlan, int]:
    """The best plan of some lines, and what no plan is below. Raises InfeasibleError."""
    found: list[TimedPlan] = []
    is_known = True
    # What is whole is copied at once, which a line in parts does not know: so both are asked, and the better counts.
    for line in lines:
        try:
            found.append(_best(problem, line))
        except InfeasibleError as error:
            failed, is_known = error, is_known and bool(error.is_proven)
    if not found:
        raise failed
    # Where nothing was found, and nothing proven either, nothing is known.
    least_ps = min(each.lower_bound_ps for each in found) if is_known else 0
    return min(found, key=lambda each: each.value_ps), least_ps


def _best(problem: Problem, line: PlannedLine) -> TimedPlan:
    """The best plan of a line. Raises InfeasibleError."""
    strategy = problem.settings.strategy
    assert isinstance(strategy, ByTime)
    question = LineProblem(
        pieces=line.pieces(),
        kinds=line.line_kinds(),
        devices=line.device_kinds(),
        hop_ps=line.hop_table(),
        ties=line.ties(),
        closed=line.closed,
        objective=objective_of(strategy),
        batches=batches_of(strategy),
        any_order=strategy.order == "any",
        schedule="serial" if problem.settings.staging_blocks == 1 else "overlapped",
        staging_blocks=problem.settings.staging_blocks,
        search_steps=strategy.search_steps,
    )
    cache_tokens = None
    try:
        if wants_cache(problem.settings):
            cache_tokens, first = with_most_cache(problem.settings, line, question)
        else:
            first = solve_line(question)
    except InfeasibleError as error:
        raise _infeasible(line, is_proven=bool(error.is_proven)) from error
    if cache_tokens is not None:  # what was worked out of a line is the line's
        line = replace(line, cache_tokens=cache_tokens)
    best = TimedPlan(problem, line, first)
    plans = [best]
    if question.objective != "latency" and best.timing.bottleneck_ps > first.bottleneck_ps:
        # What has a state, if only a bit, runs where it lies: no device works for the runs of others then.
        alone = tuple(replace(piece, state_bits=max(1, piece.state_bits)) for piece in question.pieces)
        plans += _plans(problem, line, answers_of(replace(question, pieces=alone)), first.lower_bound_ps)

    def lacking_bytes(answer: LineAnswer) -> int:
        return TimedPlan(problem, line, answer).lacking_bytes

    if best.lacking_bytes > 0:
        less = answers_with_less_on_the_host(question, line, lacking_bytes)
        plans += [TimedPlan(problem, line, answer) for answer in less]
    having_room = [plan for plan in plans if plan.has_room]
    if not having_room:
        raise _infeasible(line, is_proven=False)
    best = min(having_room, key=lambda plan: plan.value_ps)
    return best.bounded(max(plan.lower_bound_ps for plan in plans))


def _plans(
    problem: Problem, line: PlannedLine, answers: Iterable[LineAnswer], lower_bound_ps: int
) -> Iterator[TimedPlan]:
    for answer in answers:
        yield TimedPlan(problem, line, replace(answer, lower_bound_ps=lower_bound_ps))


def _infeasible(line: PlannedLine, *, is_proven: bool) -> InfeasibleError:
    names = line.names
    largest = max(range(len(line.work)), key=lambda block: line.work[block].weight_bytes, default=0)
    said = "there is none" if is_proven else "none was found"
    helpful = "more room, cpu or disk to offload to, or strategy 'auto', which may come back to a device, would help"
    if any(node_of(budget.device) for budget in line.budgets):
        helpful = (
            "more room or another device would help: nothing is offloaded in a plan over several computers"
        )
    if line.closed:
        helpful = "more room or another device would help: what lies at the ends, and whole layers, are as the engine has them"
    return InfeasibleError(
        f"no plan in which each device runs one stretch of the model has room: {said}; {helpful}",
        block=names[largest][0] if names and names[largest] else "",
        device=None,
        shortfall_bytes=None,
        more_bytes={},
        best_partial={},
        is_proven=is_proven,
    )
