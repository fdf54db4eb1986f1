"""What takes the place of diffusers' ``_determine_device_map``: where one model of a pipeline goes, while it is on meta."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from planner.checkpoint.source import open_source
from planner.compat.huggingface.budgets import budgets_of, said_budgets
from planner.planning.api import plan_in_files
from planner.plans.plan import Plan

if TYPE_CHECKING:
    from planner.compat.huggingface.in_force import Integration

__all__ = ["determined_map"]


def determined_map(
    integration: Integration,
    before: Callable[..., Mapping[str, Any]],
    model: Any,
    device_map: Any,
    max_memory: Mapping[Any, Any] | None,
    torch_dtype: torch.dtype | None,
    keep_in_fp32_modules: Sequence[str] = (),
    hf_quantizer: object = None,
) -> Mapping[str, Any]:
    """The device map that ``ModelMixin.from_pretrained`` loads by.

    Args:
        integration: says what "auto" means, and has the settings of plans.
        before: the function whose place this takes; with a quantiser, or for a strategy of its own, it makes the map, by our functions.
        model: a ``ModelMixin``, all of it on meta.
        device_map: "auto", the name of a strategy, a plan, or names to devices.
        max_memory: as diffusers reads it: without it, what is free now.
        torch_dtype: what the weights are loaded as.
        keep_in_fp32_modules: words; a parameter whose name has one of them is loaded in float32.
        hf_quantizer: diffusers' quantiser for this model.

    Raises:
        As :func:`planner.plan`.

    Guarantee: nothing is loaded or changed. A plan is noted for the model.

    Source: diffusers 0.42, models/model_loading_utils.py.
    """
    if isinstance(device_map, Plan):
        integration.note(model, device_map)
        return device_map.device_map
    if device_map != "auto" or integration.auto != "best" or hf_quantizer is not None:
        return before(model, device_map, max_memory, torch_dtype, keep_in_fp32_modules, hf_quantizer)
    said = said_budgets(integration, max_memory)
    wide = [
        name for name, _ in model.named_parameters() if any(word in name for word in keep_in_fp32_modules)
    ]
    settings: dict[str, Any] = {
        "max_memory": {device: int(size) for device, size in budgets_of(said).items()},
        "dtype": torch_dtype,
        "special_dtypes": dict.fromkeys(wide, torch.float32),
    }
    if "no_split_module_classes" not in integration.settings:
        settings["no_split_module_classes"] = model._get_no_split_modules(device_map)
    if said is None and "headroom" not in integration.settings:
        settings["headroom"] = {"all": "10%"}
    plan = plan_in_files(open_source(model), integration.said, settings)
    integration.note(model, plan)
    return plan.device_map
