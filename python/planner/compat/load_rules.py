"""accelerate's rules about what is loaded: as which dtype, to which device, and what is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from planner.dispatching.install.device_map import ResolvedDeviceMap
from planner.dispatching.install.regions import Placement
from planner.dispatching.tensors.slots import modules_of, own_slots
from planner.errors import InvalidConstraintError, InvalidInputError
from planner.loading.stored import StoredTensor
from planner.loading.targets import CastRule
from planner.model.dtypes import resolve_dtype
from planner.model.tree import ModuleTree
from planner.names import listed, qualified, text_set
from planner.spelling import shown

__all__ = ["cast_rule", "places_of", "require_device", "without_scales"]

_CPU: Final = torch.device("cpu")
_HALVES: Final = (torch.float16, torch.bfloat16)


def cast_rule(dtype: Any, keep_in_fp32_modules: Iterable[str] | None) -> CastRule:
    """accelerate's rule: the dtype that was named, for floating tensors, and otherwise the model's own."""
    wide = text_set(keep_in_fp32_modules, "keep_in_fp32_modules")
    if dtype is None:
        return lambda _name, _stored, found: found.dtype
    wanted = resolve_dtype(dtype)
    if not wanted.is_floating_point:
        raise InvalidInputError(f"dtype is what floating tensors become; {shown(dtype)} is not floating")

    def rule(name: str, stored: torch.dtype, found: Any) -> torch.dtype:
        is_packed = stored.itemsize == 1 and found.dtype == stored
        if not stored.is_floating_point or is_packed:
            return stored
        is_wide = wanted in _HALVES and any(key == name or f"{key}." in name for key in wide)
        return torch.float32 if is_wide else wanted

    return rule


def places_of(model: nn.Module) -> ResolvedDeviceMap:
    """Where a model's tensors are, as a map: one device, or one for each tensor."""
    devices = {
        qualified(prefix, slot.name): _CPU if slot.read().is_meta else slot.read().device
        for prefix, module in modules_of(model)
        for slot in own_slots(module)
    }
    resolved_map = ResolvedDeviceMap({}, main_device="cpu")
    if len(set(devices.values())) == 1:
        devices = {"": next(iter(devices.values()))}
    resolved_map.placements.update(
        {name: Placement(device, device, False) for name, device in devices.items()}
    )
    return resolved_map


def without_scales(model: nn.Module, rows: Sequence[StoredTensor]) -> list[StoredTensor]:
    """Leaves out what bitsandbytes keeps beside its int8 weights, where the model has no place of its own for it."""
    packed = {row.name.removesuffix("weight") for row in rows if row.dtype == torch.int8}
    scales = {row.name for row in rows if row.name.endswith("SCB") and row.name.removesuffix("SCB") in packed}
    own = set(model.state_dict(keep_vars=True)) if scales else set()
    return [row for row in rows if row.name not in scales or row.name in own]


def require_device(model: nn.Module, device_map: Mapping[str, Any], rows: Sequence[StoredTensor]) -> None:
    """Raises InvalidConstraintError for tensors of the files that a map gives no device."""
    unknown, uncovered = ModuleTree.from_module(model).uncovered(device_map, "saved")
    stored = {row.name for row in rows}
    homeless = tuple(name for name in uncovered if name in stored)
    if homeless:
        raise InvalidConstraintError(
            f"{listed(map(repr, homeless))} have no device in the device_map",
            names=homeless,
            suggestions=tuple(unknown),
        )
