"""What takes the place of transformers' ``_get_device_map``: where a model goes, decided while all of it is on meta."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from planner.compat.huggingface.best import best_plan
from planner.compat.huggingface.given_maps import checked_map, checked_plan
from planner.compat.huggingface.run_elsewhere import as_dispatched
from planner.compat.huggingface.their_strategies import strategy_map

if TYPE_CHECKING:
    from torch import nn

    from planner.compat.huggingface.in_force import Integration

__all__ = ["planned_map"]


def planned_map(
    integration: Integration,
    before: Callable[..., Mapping[str, Any]],
    model: nn.Module,
    device_map: Any,
    max_memory: Mapping[Any, Any] | None,
    hf_quantizer: Any,
) -> Mapping[str, Any]:
    """The device map that ``from_pretrained`` loads by.

    Args:
        integration: says what "auto" means, and has the settings of plans.
        before: the function whose place this takes.
        model: all of it on meta, not tied yet, with the quantiser's modules.
        device_map: "auto", the name of one of transformers' strategies, a plan, or names to devices.
        max_memory: as transformers reads it: without it, what is free now; what it does not give room goes to disk.
        hf_quantizer: transformers' quantiser for this model.

    Returns:
        Of a plan, its own map, which carries its execution map; a mapping as it is, but for keys that transformers would take for
        others. What lies on the CPU alone and runs elsewhere has one key more, until it is dispatched.

    Raises:
        InfeasibleError: no plan within budgets and mode, or none that the quantiser takes, and then caused by its refusal.
        PlanMismatchError: a plan or a map that does not fit the model or this machine. Fields: ``findings``.
        InvalidDevicesError, InvalidByteSizeError: devices or budgets that make no sense.
        InvalidInputError, InvalidConstraintError: settings or names that make no sense.

    Guarantee: nothing is loaded or changed, ``max_memory`` included. A plan is noted for the model.

    Source: ``_get_device_map`` of transformers 5.23, integrations/accelerate.py.
    """
    from planner.plans.plan import Plan

    if isinstance(device_map, Plan):
        checked_plan(model, device_map, hf_quantizer)
        integration.note(model, device_map)
        return as_dispatched(model, device_map.device_map)
    if not isinstance(device_map, str):
        return as_dispatched(model, checked_map(model, device_map))
    if device_map == "auto" and integration.auto == "best":
        plan = best_plan(integration, model, max_memory, hf_quantizer)
        integration.note(model, plan)
        return as_dispatched(model, plan.device_map)
    return strategy_map(integration, model, device_map, max_memory, hf_quantizer)
