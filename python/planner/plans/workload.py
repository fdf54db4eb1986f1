"""The workload that a plan was made for, from its settings."""

from __future__ import annotations

from typing import Any

from planner.plans.parts import PlanParts
from planner.settings.workload import Workload

__all__ = ["workload_of"]

_PREFIX = "workload."


def workload_of(plan: PlanParts) -> Workload | None:
    """The workload of a plan; None for one without.

    Example:
        >>> from types import SimpleNamespace
        >>> from planner.plans.parts import Setting
        >>> settings = {"workload.context_length": Setting(value=64, rank="call"), "workload.inputs.x": Setting(value=["batch"], rank="call")}
        >>> found = workload_of(SimpleNamespace(account=SimpleNamespace(settings=settings)))
        >>> found.context_length, found.rows, dict(found.inputs)
        (64, 1, {'x': ('batch',)})
    """
    said: dict[str, Any] = {}
    inputs: dict[str, tuple[int | str, ...]] = {}
    for path, setting in plan.account.settings.items():
        name = path.removeprefix(_PREFIX)
        if name == path:
            continue
        _, dot, argument = name.partition(".")
        if dot:
            inputs[argument] = tuple(setting.value)
        else:
            said[name] = setting.value
    return Workload(**{**said, "inputs": inputs}) if said else None
