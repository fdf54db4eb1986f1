"""How far the best attempt got where there is no plan."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from planner.devices.keys import DeviceKey
from planner.errors import InfeasibleError, InvalidDevicesError
from planner.model.blocks import Blocks
from planner.model.constraints import is_usable
from planner.names import device_of
from planner.planning.api import plan_problem
from planner.planning.block_bytes import block_bytes
from planner.planning.device_rows import device_plan, offloaded_bytes
from planner.planning.problem import Problem
from planner.plans.device_map import DeviceMap
from planner.plans.no_plan import NoPlan
from planner.plans.parts import Certificate, DeviceUsage, PlanParts
from planner.plans.places import LEFT_OVER
from planner.plans.plan import Plan
from planner.settings.keywords import PlanSettings
from planner.settings.schema import Auto

if TYPE_CHECKING:
    from typing import Unpack


def partial_plan(
    error: InfeasibleError,
    source: Any,
    /,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    remote: bool = False,
    config: Any = None,
    **settings: Unpack[PlanSettings],
) -> NoPlan:
    """What can be shown of an attempt that ended in an error.

    Args:
        error: what :func:`planner.plan` raised.
        source, checkpoint, remote, config, settings: what it was called with.

    Raises:
        As :func:`planner.plan`, but for InfeasibleError.

    Cost: that of a few plans.

    Example:
        >>> import torch, planner
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(4)))
        >>> try:
        ...     planner.plan(model, max_memory={0: 1000})
        ... except planner.InfeasibleError as error:
        ...     print(partial_plan(error, model, max_memory={0: 1000}).verdict)
        Does not fit: 800 B of 1.56 KiB are left over.
    """
    problem = Problem.of(source, config, settings, checkpoint, remote=remote)
    blocks = _blocks(problem, error)
    device_map = _homes(blocks, error)
    sizes = block_bytes(blocks, device_map, {})
    homes = {name: _home(name, device_map) for name in sizes}
    used: Counter[DeviceKey] = Counter()
    for name, size in sizes.items():
        used[homes[name]] += size
    devices = tuple(
        device_plan(budget, _usage(budget.device, budget.budget_bytes, used[budget.device]), 0)
        for budget in problem.device_budgets
    )
    account = problem.account(blocks, (homes, {}), reasons=tuple, shortfall=lambda: None, minimum_bytes=dict)
    return NoPlan(
        attempt=PlanParts(
            devices=devices,
            device_map=DeviceMap(homes),
            execution_map={},
            offloaded_bytes=offloaded_bytes(devices),
            certificate=_NOT_KNOWN,
            account=account,
        ),
        more_bytes=error.more_bytes,
        auto_has_plan=error.more_bytes is None
        and _tried(Problem.of(problem.opened, config, {**settings, "strategy": "auto"}, None)) is not None,
        named_bytes=_named_bytes(problem, account.source.total_bytes),
        smaller_formats=_widest_that_fits(
            error.smaller_formats,
            lambda dtype: Problem.of(problem.opened, config, {**settings, "dtype": dtype}, None),
        ),
        is_proven=bool(error.is_proven),
    )


# Of an attempt nothing is known.
_NOT_KNOWN = Certificate(
    proven=False,
    lower_bound_bytes=0,
    gap_bytes=0,
    returns=0,
    returns_lower_bound=0,
    steps=0,
    stage="in_order",
)


def _home(name: str, device_map: Mapping[str, DeviceKey]) -> DeviceKey:
    found = device_of(name, device_map)
    return LEFT_OVER if found is None else found


def _usage(device: DeviceKey, budget_bytes: int, used_bytes: int) -> DeviceUsage:
    return DeviceUsage(device=device, budget_bytes=budget_bytes, used_bytes=used_bytes, reserved_bytes=0)


def _blocks(problem: Problem, error: InfeasibleError) -> Blocks:
    """The model as the attempt had cut it: whole, or with all blocks in parts."""
    whole = problem.blocks()
    names = {name for unit in whole.unit_names for name in unit}
    is_cut = isinstance(problem.settings.strategy, Auto) and any(
        name not in names for name in error.best_partial
    )
    return problem.blocks(sorted(names)) if is_cut else whole


def _homes(blocks: Blocks, error: InfeasibleError) -> dict[str, DeviceKey]:
    """Homes of all members of units, of which the error names the first."""
    found = dict(error.best_partial)
    for unit in blocks.unit_names:
        home = next((error.best_partial[name] for name in unit if name in error.best_partial), None)
        if home is not None:
            found.update((name, found.get(name, home)) for name in unit)
    return found


def _named_bytes(problem: Problem, total_bytes: int) -> dict[DeviceKey, int]:
    """With how much of the cpu, or else of a disk, there is a plan where the user has not named it: a round size."""
    budgets = dict(problem.settings.max_memory or {})
    found: dict[DeviceKey, int] = {}
    for device in ("cpu", "disk"):
        if (
            not budgets
            or device in budgets
            or not is_usable(device, [*budgets, device], problem.settings.mode)
        ):
            continue
        generous = _tried(problem.with_budgets({**budgets, device: total_bytes}))
        if generous is not None:
            used_bytes = sum(each.used_bytes for each in generous.devices if each.id == device)
            size_bytes = _round_up(used_bytes)
            is_enough = _tried(problem.with_budgets({**budgets, device: size_bytes})) is not None
            found[device] = size_bytes if is_enough else _round_up(total_bytes)
            break
    return found


def _widest_that_fits(formats: Mapping[str, int], problem_in: Callable[[str], Problem]) -> dict[str, int]:
    """Of smaller formats the largest with a plan, which only planning tells: blocks shrink, and what runs them does, too."""
    for name in sorted(formats, key=formats.__getitem__, reverse=True):
        if _tried(problem_in(name)) is not None:
            return {name: formats[name]}
    return {}


def _tried(problem: Problem) -> Plan | None:
    try:
        return plan_problem(problem)
    except (InfeasibleError, InvalidDevicesError):  # a device more may be one too many
        return None


def _round_up(size_bytes: int) -> int:
    """To a whole number of the unit in which people would say it."""
    unit = 1 << 10 * ((max(size_bytes, 1).bit_length() - 1) // 10)
    return -(-size_bytes // unit) * unit
