"""The plans of `auto` for a problem that goes by time: never worse than these, whatever room they have that a line has not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from planner.choices import ExecuteOffloaded
from planner.devices.keys import DeviceKey
from planner.errors import InfeasibleError
from planner.planning.automatic import plan_auto
from planner.planning.pricing import priced_in
from planner.planning.problem import Problem
from planner.planning.step_times import batches_of, objective_of, value_of
from planner.plans.parts import Reason
from planner.plans.plan import Plan
from planner.plans.timing import Timing
from planner.settings.strategies import Auto, ByTime

__all__ = ["plans_of_auto"]

_EXECUTORS: tuple[ExecuteOffloaded, ...] = ("accelerator", "cpu")


def plans_of_auto(problem: Problem) -> Iterator[Plan]:
    """Plans of `auto`, offloaded blocks run by accelerators and by the cpu, with what a step takes.

    Args:
        problem: with a strategy that goes by time.

    Guarantee: each keeps within the same budgets and constraints, and with other strategies than `latency` has one run a device.
        Nothing is known of other plans: the lower bound is 0.

    Cost: that of two plans of `auto`.
    """
    strategy = problem.settings.strategy
    assert isinstance(strategy, ByTime)
    if any("/" in str(budget.device) for budget in problem.device_budgets):
        return  # over several computers there is no such plan
    for executor in _EXECUTORS:
        settings = replace(problem.settings, strategy=Auto(), execute_offloaded=executor)
        asked = replace(problem, resolved=replace(problem.resolved, config=settings))
        try:
            plan = plan_auto(asked)
        except InfeasibleError:
            continue
        if not plan.device_map:
            return  # nothing that could lie elsewhere
        timing = _timing(priced_in(problem, plan), strategy)
        devices = [stage.device for stage in timing.stages]
        if timing.objective == "latency" or len({*devices}) == len(devices):
            yield _as_asked(problem, plan, timing)


def _timing(priced: Timing, strategy: ByTime) -> Timing:
    """What a step takes, by what is to be small."""
    busy_ps: Counter[DeviceKey] = Counter()
    for stage in priced.stages:
        busy_ps[stage.device] += stage.ps
    bottleneck_ps = max(busy_ps.values(), default=0)
    return replace(
        priced,
        objective=objective_of(strategy),
        batches=batches_of(strategy),
        value_ps=value_of(strategy, priced.latency_ps, bottleneck_ps),
        bottleneck_ps=bottleneck_ps,
    )


def _as_asked(problem: Problem, plan: Plan, timing: Timing) -> Plan:
    """The plan with the settings that were asked for, and where it is from."""
    device = next(iter(plan.device_map.values()))
    size_bytes = sum(each.used_bytes for each in plan.devices)
    reason = Reason(rule="as_auto", name="", device=device, needed_bytes=size_bytes, available_bytes=None)
    account = problem.account(
        problem.blocks(),
        (plan.device_map, plan.execution_map),
        reasons=lambda: (reason, *plan.reasons),
        shortfall=lambda: plan.shortfall,
        minimum_bytes=lambda: plan.minimum_bytes,
        demands=lambda: plan.demands,
        predicted_peaks=lambda: plan.predicted_peaks,
    )
    return replace(plan, account=account, timing=timing)
