"""What ``device_map="auto"`` means with ``auto="best"``: a plan of ours, with bytes as they will be once the model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from planner.checkpoint.source import open_source
from planner.compat.huggingface.budgets import budgets_of, said_budgets, shares_left, warn_of_disk
from planner.compat.loaded_bits import loaded_bits
from planner.compat.ties import declared_ties
from planner.devices.keys import Budgets, device_kind
from planner.errors import InfeasibleError
from planner.planning.api import plan_in_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from planner.checkpoint.opened import Opened
    from planner.compat.huggingface.in_force import Integration
    from planner.plans.plan import Plan

__all__ = ["as_loaded", "best_plan"]


def best_plan(
    integration: Integration,
    model: nn.Module,
    max_memory: Mapping[Any, Any] | None,
    hf_quantizer: Any,
) -> Plan:
    """The plan that offloads least, and that the quantiser takes; the rest lies on disk, in the checkpoint's own files.

    Raises:
        As :func:`planner.compat.huggingface.planned.planned_map`.
    """
    # A mapping without devices says no more than none, as for `planner.plan`.
    said = said_budgets(integration, None if max_memory == {} else max_memory)
    budgets = budgets_of(said)
    rooms = dict(budgets) if hf_quantizer is None else hf_quantizer.adjust_max_memory(dict(budgets))
    settings: dict[str, Any] = {
        "max_memory": {device: int(size) for device, size in rooms.items()},
        # What weights are loaded as is decided by now, and asked of the model.
        "dtype": None,
        "special_dtypes": {},
    }
    if "headroom" not in integration.settings:
        # As a share of what was said, so that an error tells by how much more must be said.
        settings["max_memory"] = {device: int(size) for device, size in budgets.items()}
        settings["headroom"] = shares_left(budgets, rooms if said is not None else _less_a_tenth(rooms))
    opened = as_loaded(model, hf_quantizer)
    plan = plan_in_files(opened, integration.said, settings)
    if hf_quantizer is not None:
        on_accelerators = partial(plan_in_files, opened, integration.said, {**settings, "mode": "gpu_only"})
        plan = _accepted(plan, hf_quantizer, on_accelerators)
    warn_of_disk(plan.device_map, lambda _: plan.offloaded_bytes["disk"], budgets)
    return plan


def _less_a_tenth(rooms: Budgets) -> Budgets:
    """Of what was found free, room for more than weights; of the cpu, `get_max_memory` has left a tenth already."""
    return {
        device: size * 0.9 if device_kind(device) == "accelerator" else size for device, size in rooms.items()
    }


def as_loaded(model: nn.Module, hf_quantizer: Any) -> Opened:
    """A model on meta, with the ties and the sizes that it will have."""
    return replace(open_source(model), fixed_bits=loaded_bits(model, hf_quantizer), tied=declared_ties(model))


def _accepted(plan: Plan, hf_quantizer: Any, on_accelerators: Callable[[], Plan]) -> Plan:
    """The plan, or where the quantiser refuses what is offloaded, one with all of it on accelerators.

    Raises:
        InfeasibleError: there is none; caused by the refusal.
    """
    try:
        hf_quantizer.validate_environment(device_map=dict(plan.device_map))
        return plan
    except ValueError as refusal:
        if not any(plan.offloaded_bytes.values()):
            raise
        try:
            plan = on_accelerators()
        except InfeasibleError as error:
            quantiser = type(hf_quantizer).__name__
            message = f"{quantiser} takes nothing that lies on the cpu or on disk, and {error.message}"
            raise InfeasibleError(message, **error.fields) from refusal
    hf_quantizer.validate_environment(device_map=dict(plan.device_map))
    return plan
