"""`plan()` with accelerate's strategies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import cast

from planner.choices import Stage
from planner.config.types import schema_of
from planner.devices.keys import DeviceKey, main_device, offload_tiers
from planner.errors import InvalidConstraintError
from planner.planning.device_rows import device_plan, offloaded_bytes
from planner.planning.problem import Problem
from planner.plans.device_map import DeviceMap
from planner.plans.parts import Certificate, DevicePlan
from planner.plans.plan import Plan
from planner.settings.schema import Sequential
from planner.strategies.modes import ModeProblem
from planner.strategies.sequential import Outcome

_CONSTRAINTS = ("pin", "forbid", "keep_together", "no_split_modules")


def plan_sequential(problem: Problem) -> Plan:
    """The plan of accelerate's strategies, repaired. Raises InfeasibleError, InvalidConstraintError."""
    chosen, budgets = problem.settings, problem.device_budgets
    assert isinstance(chosen.strategy, Sequential)
    if chosen.workload is not None:
        raise InvalidConstraintError(
            "workload needs strategy 'auto'; accelerate's strategies count weights alone",
            names=("workload",),
            suggestions=(),
        )
    for name in _CONSTRAINTS:
        if getattr(chosen, name):
            raise InvalidConstraintError(
                f"{name} needs strategy 'auto'; accelerate's strategies know no constraints",
                names=(name,),
                suggestions=(),
            )
    filling = ModeProblem(
        layout=problem.layout, device_budgets=budgets, strategy=chosen.strategy, mode=chosen.mode
    )
    outcome = filling.solve()
    devices = tuple(_devices(filling, outcome))
    offloaded = offloaded_bytes(devices)
    device_map = outcome.device_map()
    execution_map = _execution_map(device_map)
    return Plan(
        devices=devices,
        device_map=DeviceMap(device_map, execution_map),
        execution_map=execution_map,
        offloaded_bytes=offloaded,
        certificate=_certificate(problem, sum(offloaded.values())),
        account=problem.account(
            problem.blocks(),
            (device_map, execution_map),
            reasons=lambda: outcome.reasons,
            shortfall=lambda: None,
            minimum_bytes=partial(filling.minimum_bytes, outcome),
        ),
    )


def _devices(filling: ModeProblem, outcome: Outcome) -> Iterator[DevicePlan]:
    used = {usage.device: usage for usage in outcome.usage}
    for budget in filling.device_budgets:
        usage = used.pop(budget.device)
        left_bytes = (
            budget.capacity_bytes - usage.used_bytes
        )  # more may be wanted for offloaded layers than is left
        yield device_plan(budget, usage, min(usage.reserved_bytes, left_bytes))


def _certificate(problem: Problem, offloaded_total_bytes: int) -> Certificate:
    """Of strategies that do not search, nothing is known but that no plan offloads less than nothing."""
    return Certificate(
        proven=offloaded_total_bytes == 0,
        lower_bound_bytes=0,
        gap_bytes=offloaded_total_bytes,
        returns=0,
        returns_lower_bound=0,
        steps=0,
        stage=cast("Stage", schema_of(type(problem.settings.strategy)).tag),
    )


def _execution_map(device_map: Mapping[str, DeviceKey]) -> dict[str, DeviceKey]:
    """Where offloaded parts run: accelerate's strategies keep room for them on the first accelerator that holds anything."""
    main = main_device(device_map.values())
    # Without an accelerator, the cpu runs what is on disk, as it does wherever nothing is said.
    return {name: main for name, key in device_map.items() if main != "cpu" and key in offload_tiers(main)}
