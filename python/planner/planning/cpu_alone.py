"""What is said where accelerators are too small to run what the cpu could: offloaded blocks run on accelerators unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from planner.devices.keys import device_kind
from planner.errors import PlannerError
from planner.names import listed
from planner.planning.problem import Problem
from planner.plans.plan import Plan
from planner.strategies.running import is_beyond

__all__ = ["cpu_alone"]


def cpu_alone(problem: Problem, planned: Callable[[Problem], Plan]) -> str:
    """What would help a problem that has no plan, where its cpu runs everything without its accelerators; else nothing.

    Args:
        problem: one without a plan.
        planned: makes the plan of a problem.

    Cost: O(blocks); where the cpu has room for everything, one more search, of one device.
    """
    chosen = problem.settings
    budgets = problem.device_budgets
    left_out = [budget.device for budget in budgets if device_kind(budget.device) == "accelerator"]
    cpu = [budget for budget in budgets if budget.device == "cpu"]
    is_choice = chosen.mode != "gpu_only" and chosen.execute_offloaded != "cpu"
    if chosen.workload is None or not (left_out and cpu and is_choice):
        return ""
    blocks = problem.blocks()
    rooms = problem.running_rooms(blocks)
    if rooms is None or is_beyond(blocks, rooms.most, cpu):
        return ""
    others = {
        budget.device: problem.budgets.get(budget.device, budget.budget_bytes)
        for budget in budgets
        if budget.device not in left_out
    }
    with suppress(PlannerError):  # then it is no advice: constraints may name what would be left out
        planned(replace(problem, budgets=others))
        return (
            f"the cpu alone has room for all of it: leave {listed([str(device) for device in left_out])} out of max_memory, or let it run "
            "what they cannot, execute_offloaded='cpu'"
        )
    return ""
