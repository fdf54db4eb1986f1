"""`plan()` and `plan_many()`: the arguments of a call, and which strategy gets the problem."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from planner.checkpoint.source import Opened
from planner.devices.keys import DeviceKey
from planner.errors import InfeasibleError, InvalidConfigError, InvalidDevicesError
from planner.model.tree import ModuleTree
from planner.planning.automatic import plan_auto, plan_auto_many
from planner.planning.cpu_alone import cpu_alone
from planner.planning.problem import Problem
from planner.planning.understanding import settings_stack
from planner.plans.plan import Plan
from planner.settings.keywords import PlanSettings
from planner.settings.schema import Auto, Settings, read_budget_row
from planner.settings.strategies import ByTime
from planner.spelling import shown

if TYPE_CHECKING:
    from torch import nn


def plan(
    source: nn.Module | ModuleTree | Opened | str | os.PathLike[str],
    /,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    remote: bool = False,
    config: Any = None,
    **settings: Unpack[PlanSettings],
) -> Plan:
    """Where a model goes: by default, as little offloaded as can be.

    Args:
        source: a live model, one that was flattened before, or the path of a checkpoint: a folder, a safetensors file, an
            index, or a ``config.json`` alone; or a name on the hub that is in the hub's cache. Of files, nothing but headers
            is read.
        checkpoint: for a live model, files whose tensors' sizes count instead of the model's own.
        remote: whether the headers of a model that is not in the hub's cache are read from the hub, through huggingface_hub.
        config: a file, a mapping, a ``Stack`` or a ``Resolved`` that ``settings`` go on top of. Nothing else is read.
        settings: as in :class:`planner.settings.schema.Settings`: ``max_memory``, ``strategy``, ``mode``, ``pin``, …

    Returns:
        The plan, with reasons and a certificate.

    Raises:
        InvalidConfigError: settings that are wrong, all at once. Fields: ``problems``.
        InvalidConstraintError: names that the model does not have, or constraints that contradict each other. Fields:
            ``names``, ``suggestions``.
        InvalidInputError: ``checkpoint`` beside something that is no live model.
        InvalidTreeError: no model, or one that cannot be planned: it contains itself, has uninitialised parameters, or more
            names or bytes than can be counted. Fields: ``name``.
        InvalidDevicesError: a device that torch does not know, headroom of a device without a budget, more than 64 devices, or
            budgets to be detected without torch. Fields: ``device``.
        CheckpointError: files that are missing, malformed or hostile. Fields: ``file``, ``reason``.
        InfeasibleError: no plan within budgets and mode. Fields: ``block``, ``device``, ``shortfall_bytes``,
            ``more_bytes``, ``best_partial``, ``is_proven``.

    Guarantee: every tensor has a home; shared tensors have one; on every device used + reserved + headroom is within the
        budget; with ``auto``, nothing is offloaded if any assignment at all is found to fit, and the certificate says
        whether the offloaded bytes are proven least. The same problem gives the same plan.

    Cost: O(modules + tensors) when blocks fit in order; else at most ``search_steps`` steps more.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(4)))
        >>> dict(plan(model, max_memory={0: 800, 1: 800}).device_map)
        {'0': 0, '1': 0, '2': 1, '3': 1}
    """
    return plan_problem(Problem.of(source, config, settings, checkpoint, remote=remote))


def plan_many(
    source: nn.Module | ModuleTree | Opened | str | os.PathLike[str],
    budgets: Iterable[Mapping[Any, Any]],
    /,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    remote: bool = False,
    config: Any = None,
    **settings: Unpack[PlanSettings],
) -> list[Plan | InfeasibleError]:
    """Plans one model for many budgets, in the order given.

    Args:
        source: as in :func:`plan`; flattened once.
        budgets: device to budget, in bytes or words, one mapping for each plan.
        checkpoint: as in :func:`plan`.
        remote: as in :func:`plan`.
        config: as in :func:`plan`.
        settings: as in :func:`plan`, without ``max_memory``.

    Returns:
        A plan for each, or the error where there is none.

    Raises:
        As :func:`plan`, for anything but a budget that is too small; InvalidDevicesError also where ``budgets`` is no list of
        mappings.

    Guarantee: each plan is the one that :func:`plan` makes of that budget.

    Cost: the model is flattened once; the searches run on all cores with the GIL released.
    """
    rows = _budget_rows(budgets)
    if not rows:
        return []
    problem = Problem.of(source, config, {**settings, "max_memory": rows[0]}, checkpoint, remote=remote)
    if _is_one_search(problem.settings):
        return plan_auto_many(problem, rows)
    return [_plan_or_error(problem.with_budgets(row)) for row in rows]


def plan_to_load(opened: Opened, settings: Mapping[str, Any]) -> Plan:
    """The plan of a model that will be loaded from its files, which are its disk: without a limit where no budgets are said.

    Args:
        opened: the model, with the sizes of its tensors in the files.
        settings: as keywords of :func:`plan`.

    Raises:
        As :func:`plan`.
    """
    problem = Problem.of(opened, None, settings, None)
    return plan_problem(replace(problem, files_as_disk="without_budgets"))


def plan_in_files(opened: Opened, config: Any, settings: Mapping[str, Any]) -> Plan:
    """The same where the disk has no limit unless the budgets name it, whatever else they name.

    Args:
        opened: the model.
        config: as in :func:`plan`.
        settings: as keywords of :func:`plan`.

    Raises:
        As :func:`plan`.
    """
    problem = Problem.of(opened, config, settings, None)
    return plan_problem(replace(problem, files_as_disk="unless_named"))


def plan_problem(problem: Problem) -> Plan:
    """The plan of a problem by the strategy that its settings name. Raises InfeasibleError."""
    try:
        if isinstance(problem.settings.strategy, Auto):
            return _planned_automatically(problem)
        if isinstance(problem.settings.strategy, ByTime):
            from planner.planning.timed import plan_timed

            return plan_timed(problem)
        from planner.planning.sequential import plan_sequential  # few plans ask for accelerate's strategies

        return plan_sequential(problem)
    except InfeasibleError as error:
        raise problem.noted(error) from error


def _planned_automatically(problem: Problem) -> Plan:
    try:
        return plan_auto(problem)
    except InfeasibleError as error:
        advice = cpu_alone(problem, plan_auto)
        if not advice:
            raise
        raise InfeasibleError(f"{error.message}; {advice}", **error.fields) from error


def _is_one_search(settings: Settings) -> bool:
    """Whether a plan is one answer of the core, so that many are found at once."""
    return isinstance(settings.strategy, Auto) and settings.granularity != "module"


def _plan_or_error(problem: Problem) -> Plan | InfeasibleError:
    try:
        return plan_problem(problem)
    except InfeasibleError as error:
        return error


def _budget_rows(budgets: Any) -> list[dict[DeviceKey, int]]:
    """Budgets of many plans, each read as ``max_memory`` of one. Raises InvalidDevicesError, InvalidConfigError."""
    is_list = isinstance(budgets, Iterable) and not isinstance(budgets, str | Mapping)
    if not is_list or getattr(budgets, "ndim", 1) == 0:  # an array of one number has no rows
        raise InvalidDevicesError(
            f"plan_many needs a list of budgets such as [{{0: '80GiB'}}, {{0: '40GiB'}}], got {shown(budgets)}",
            device=None,
        )
    return [_budget_row(row, number) for number, row in enumerate(budgets)]


def _budget_row(row: Any, number: int) -> dict[DeviceKey, int]:
    try:
        return read_budget_row(row)
    except ValueError:
        pass  # the settings say what is wrong; reading through them each time would take as long as a plan
    try:
        return dict(settings_stack(None, {"max_memory": row}).resolve().config.max_memory or {})
    except InvalidConfigError as error:
        raise InvalidConfigError(
            f"budgets {number} of plan_many: {error.message}", problems=error.problems
        ) from error
