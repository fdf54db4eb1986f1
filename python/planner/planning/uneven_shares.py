"""Plans where the cpu runs blocks, too, which has no allocator's margin, beside accelerators that keep a share for theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from planner.choices import ShareCounting
from planner.errors import InfeasibleError
from planner.planning.margins import margin_of
from planner.planning.problem import Problem
from planner.plans.plan import Plan
from planner.plans.wording import as_not_proven
from planner.strategies.auto import AutoAnswer

__all__ = ["is_uneven", "planned_unevenly"]


def is_uneven(problem: Problem) -> bool:
    """Whether devices that may run blocks keep different shares of what runs there.

    Raises:
        InvalidInputError, UnknownMemoryError: what the workload asks for cannot be told.
    """
    chosen = problem.settings
    if chosen.workload is None or chosen.mode == "gpu_only":
        return False
    budgets = {budget.device: budget for budget in problem.device_budgets if budget.kind != "disk"}
    margins = {device: margin_of(device, chosen.workload.allocator_margin) for device in budgets}
    if "cpu" not in budgets or len({margin.share for margin in margins.values()}) < 2:
        return False
    if chosen.execute_offloaded == "cpu":
        return True
    # A block above every accelerator runs on the cpu.
    blocks = problem.blocks()
    rooms = problem.running_rooms(blocks)
    shared_bytes = 0 if rooms is None else rooms.most.shared_bytes
    widest_bytes = max(
        budget.capacity_bytes - margins[device].beside_bytes - int(shared_bytes * (1 + margins[device].share))
        for device, budget in budgets.items()
        if device != "cpu"
    )
    return 0 < widest_bytes < max(blocks.unit_bytes, default=0)


def planned_unevenly(
    problem: Problem, planned: Callable[[Problem], Plan], solved: Callable[[Problem], AutoAnswer]
) -> Plan:
    """The better of two plans, which count margins in two ways.

    Args:
        problem: one that is uneven.
        planned: makes the plan of a problem.
        solved: the search's answer to one, without the plan.

    Raises:
        InfeasibleError: neither way has a plan; proven where there is none without any share either.

    Guarantee: each device has room for its margin. The certificate is about plans without a share of margins.
    """
    bound_bytes, is_proven = 0, False
    try:
        bound_bytes = solved(replace(problem, shares="not_at_all")).certificate.lower_bound_bytes
    except InfeasibleError as error:
        is_proven = bool(error.is_proven)
    best: Plan | None = None
    refused: list[InfeasibleError] = []
    ways: tuple[ShareCounting, ...] = ("in_needs", "beside")
    for shares in ways:
        try:
            found = planned(replace(problem, shares=shares))
        except InfeasibleError as error:
            refused.append(error)
            continue
        if best is None or _offloaded(found) < _offloaded(best):
            best = found
        if _offloaded(best) == bound_bytes:
            break
    if best is None:
        nearest = min(refused, key=lambda error: error.shortfall_bytes or float("inf"))
        message = nearest.message if is_proven else as_not_proven(nearest.message)
        raise InfeasibleError(message, **{**nearest.fields, "is_proven": is_proven}) from nearest
    gap_bytes = best.certificate.lower_bound_bytes + best.certificate.gap_bytes - bound_bytes
    certificate = replace(
        best.certificate,
        proven=gap_bytes == 0,
        lower_bound_bytes=bound_bytes,
        gap_bytes=gap_bytes,
        returns_lower_bound=0,
    )
    return replace(best, certificate=certificate)


def _offloaded(plan: Plan) -> int:
    return plan.certificate.lower_bound_bytes + plan.certificate.gap_bytes
