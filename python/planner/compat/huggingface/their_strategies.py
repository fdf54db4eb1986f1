"""transformers' own strategies by our functions: key for key its maps where these are valid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from planner.compat.huggingface.budgets import budgets_of, said_budgets, warn_of_disk
from planner.compat.huggingface.key_matching import as_matched
from planner.compat.loaded_bits import quantized_bits
from planner.compat.transformers import get_balanced_memory, infer_auto_device_map

if TYPE_CHECKING:
    import torch
    from torch import nn

    from planner.compat.huggingface.in_force import Integration
    from planner.devices.keys import DeviceKey

__all__ = ["strategy_map"]


def strategy_map(
    integration: Integration,
    model: nn.Module,
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
    no_split = getattr(model, "_no_split_modules", None)
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
    exempt = getattr(model, "_no_placement_params", None)
    device_map = infer_auto_device_map(
        model,
        max_memory=budgets,
        no_split_module_classes=no_split,
        hf_quantizer=hf_quantizer,
        no_placement_params=exempt,
    )
    if hf_quantizer is not None:
        hf_quantizer.validate_environment(device_map=device_map)
    warn_of_disk(device_map, lambda names: _bytes_of(model, hf_quantizer, names), named)
    # Keys that cover each tensor once are none of them taken for another; only what is left out can be.
    return device_map if exempt is None else as_matched(model, device_map)


def _bytes_of(model: nn.Module, hf_quantizer: Any, names: list[str]) -> int:
    """Bytes of some modules and tensors, of a tied one under its first name; no others are looked at."""
    bits = {} if hf_quantizer is None else quantized_bits(model, hf_quantizer)
    uncounted = getattr(model, "all_tied_weights_keys", None) or ()
    counted = ((name, tensor) for name, tensor in _tensors_of(model, names) if name not in uncounted)
    return sum(bits.get(name, tensor.nbytes * 8) for name, tensor in counted) // 8


def _tensors_of(model: nn.Module, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for name in names:
        owner, _, last = name.rpartition(".")
        direct = model.get_submodule(owner)
        tensor = direct._parameters.get(last, direct._buffers.get(last))
        if tensor is not None:
            yield name, tensor
            continue
        module = model.get_submodule(name)
        yield from module.named_parameters(prefix=name)
        yield from module.named_buffers(prefix=name)
