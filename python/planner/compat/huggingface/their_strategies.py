"""transformers' own strategies by our functions: key for key its maps where these are valid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planner.compat.huggingface.budgets import budgets_of, said_budgets, warn_of_disk
from planner.compat.huggingface.key_matching import as_matched
from planner.compat.transformers import compute_module_sizes, get_balanced_memory, infer_auto_device_map

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from planner.compat.huggingface.in_force import Integration
    from planner.devices.keys import DeviceKey

__all__ = ["strategy_map"]


def strategy_map(
    integration: Integration,
    model: PreTrainedModel,
    strategy: str,
    max_memory: Mapping[Any, Any] | None,
    hf_quantizer: Any,
) -> Mapping[str, DeviceKey]:
    """The map of "auto", "balanced", "balanced_low_0" or "sequential".

    Raises:
        As :func:`planner.compat.huggingface.planned.planned_map`; ValueError as the quantiser refuses the map.

    Source: ``_get_device_map`` of transformers 5.23, integrations/accelerate.py.
    """
    said = said_budgets(integration, max_memory)
    budgets = budgets_of(said)
    named = set(budgets)
    no_split = model._no_split_modules
    if strategy != "sequential":
        budgets = get_balanced_memory(
            model,
            max_memory=said,
            no_split_module_classes=no_split,
            hf_quantizer=hf_quantizer,
            low_zero=strategy == "balanced_low_0",
        )
    if hf_quantizer is not None:
        budgets = hf_quantizer.adjust_max_memory(budgets)
    device_map = infer_auto_device_map(
        model,
        max_memory=budgets,
        no_split_module_classes=no_split,
        hf_quantizer=hf_quantizer,
        no_placement_params=getattr(model, "_no_placement_params", None),
    )
    if hf_quantizer is not None:
        hf_quantizer.validate_environment(device_map=device_map)
    on_disk = [name for name, device in device_map.items() if device == "disk"]
    if on_disk:
        sizes, _ = compute_module_sizes(model, hf_quantizer, only_modules=False)
        warn_of_disk({name: int(sizes.get(name, 0)) for name in on_disk}, named)
    return as_matched(model, device_map)
