"""Plans and device maps that a caller hands to ``from_pretrained``, judged before a byte is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from planner.caller import warn_caller
from planner.compat.huggingface.best import as_loaded
from planner.compat.huggingface.key_matching import as_matched
from planner.compat.ties import declared_ties
from planner.devices.keys import DeviceKey, canonical_device
from planner.errors import PlanMismatchError
from planner.known_names import KnownNames
from planner.model.layout import Layout
from planner.model.tree import ModuleTree
from planner.names import device_of, listed, require_map, require_texts
from planner.plans.device_map import DeviceMap
from planner.units import format_bytes

if TYPE_CHECKING:
    from torch import nn

    from planner.plans.plan import Plan

__all__ = ["checked_map", "checked_plan"]

_CLEARLY: Final = 1.02  # buffers that no file holds are in the model, and not in a plan from files


def checked_plan(model: nn.Module, plan: Plan, hf_quantizer: Any) -> Plan:
    """A plan that fits a model on meta, this machine and the quantiser.

    Raises:
        PlanMismatchError: it is of another model, or does not fit this machine. Fields: ``findings``.
        ValueError: as the quantiser refuses its map.

    Guarantee: warns if the model will be clearly larger than was planned.
    """
    from planner.dispatching.install.device_map import ResolvedDeviceMap, require_fit, require_whole

    resolved_map = ResolvedDeviceMap.of_plan(plan)
    require_fit(model, resolved_map)
    require_whole(model, resolved_map)
    _require_own(model, plan)
    if hf_quantizer is not None:
        hf_quantizer.validate_environment(device_map=dict(plan.device_map))
    opened = as_loaded(model, hf_quantizer)
    layout = Layout(opened.tree, sizes=opened.sizes(None, {}), tied=opened.tied)
    loaded_bytes, planned_bytes = -(-layout.columns.total_bits // 8), plan.source.total_bytes
    if loaded_bytes > planned_bytes * _CLEARLY:
        warn_caller(
            f"the plan is for {format_bytes(planned_bytes)}, and this {type(model).__name__} is loaded as {model.dtype}, with "
            f"{format_bytes(loaded_bytes)}: budgets may be exceeded; load it with the dtype of the plan, or plan it with this dtype"
        )
    return plan


def _require_own(model: nn.Module, plan: Plan) -> None:
    """Raises PlanMismatchError unless a plan was made of a model with these blocks and these layers. Fields: ``findings``."""
    if not plan.names.kinds:
        return  # written before plans had names
    blocks = list(plan.block_bytes)
    known = ModuleTree.from_module(model).columns.knows(blocks)
    strange = [name for name, is_known in zip(blocks, known, strict=True) if not is_known]
    # A quantiser may give a layer other tensors than its files have.
    layers = dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters())
    tied = {name.rpartition(".")[0] for group in declared_ties(model) for name in group}
    unplanned = [name for name in layers if name and name not in plan.names and name not in tied]
    if strange or unplanned:
        parts = [f"it has {listed(map(repr, strange))}"] if strange else []
        parts += [f"it does not know {listed(map(repr, unplanned))}"] if unplanned else []
        raise PlanMismatchError(
            f"the plan is of another model than this {type(model).__name__}: {'; '.join(parts)}; plan this very model",
            findings=(*strange, *unplanned),
        )


def checked_map(model: nn.Module, device_map: Mapping[str, Any]) -> Mapping[str, Any]:
    """A map as it is, without keys that name nothing, and with those that transformers needs to read it as it is meant.

    Raises:
        PlanMismatchError: tensors without a device, or devices that this machine does not have. Fields: ``findings``.
        InvalidDevicesError: a device that is none. Fields: ``device``.
        InvalidInputError, InvalidConstraintError: no mapping from names.

    Guarantee: warns of keys that name nothing.
    """
    from planner.dispatching.install.device_map import ResolvedDeviceMap, require_whole

    require_map(device_map)
    require_texts(device_map)
    if {str(device) for device in device_map.values()} == {"meta"}:
        return device_map  # nothing is loaded, and nothing will run
    resolved_map = (
        ResolvedDeviceMap.of_plan(device_map)
        if isinstance(device_map, DeviceMap)
        else ResolvedDeviceMap(device_map)
    )
    tree = ModuleTree.from_module(model)
    unknown, uncovered = tree.uncovered(device_map, "saved")
    if uncovered and getattr(model, "_no_placement_params", None) is None:
        raise PlanMismatchError(
            f"the device map has no device for {listed(map(repr, uncovered))}; {_unknown(model, tree, unknown)}a key '' would be for "
            "all that no other key names",
            findings=tuple(uncovered),
        )
    require_whole(model, resolved_map)
    device_map = _in_torchs_words(device_map)
    if unknown:
        warn_caller(
            f"the device map is read without some of its keys: {_unknown(model, tree, unknown)}".rstrip("; ")
        )
        device_map = _without(device_map, unknown)
    return as_matched(model, _with_ties_on_disk(model, device_map))


def _in_torchs_words(device_map: Mapping[str, Any]) -> Mapping[str, Any]:
    """A map whose devices torch can read and use: transformers hands them to torch, some of them once files are read.

    Raises:
        InvalidDevicesError: a device that cannot be used here, as "cuda:0" without CUDA. Fields: ``device``.
    """
    import torch

    from planner.dispatching.tensors.slots import usable_device

    numbers: dict[str, DeviceKey] = {}
    for name, device in device_map.items():
        if isinstance(device, str) and device.isdecimal():
            numbers[name] = canonical_device(device)  # "0" is a number to us, and no device to torch
        elif isinstance(device, str | torch.device) and str(device) not in ("cpu", "disk"):
            usable_device(device)
    if not numbers:
        return device_map
    found = {**device_map, **numbers}
    return DeviceMap(found, device_map.execution_map) if isinstance(device_map, DeviceMap) else found


def _with_ties_on_disk(model: nn.Module, device_map: Mapping[str, Any]) -> Mapping[str, Any]:
    """A map by which a tied weight rests under all its names where the one that files have does: transformers reads only that."""
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    more: dict[str, Any] = {}
    for name, source in ties.items():
        devices = (device_of(name, device_map), device_of(source, device_map))
        if "disk" in devices and devices[0] != devices[1]:
            owner = name.rpartition(".")[0]
            more[owner if owner in device_map else name] = devices[1]
    if not more:
        return device_map
    found = {**device_map, **more}
    return DeviceMap(found, device_map.execution_map) if isinstance(device_map, DeviceMap) else found


def _without(device_map: Mapping[str, Any], unknown: Sequence[str]) -> Mapping[str, Any]:
    kept = {name: device for name, device in device_map.items() if name not in set(unknown)}
    return DeviceMap(kept, device_map.execution_map) if isinstance(device_map, DeviceMap) else kept


def _unknown(model: nn.Module, tree: ModuleTree, unknown: Sequence[str]) -> str:
    """That names are not there, and what they may have meant; nothing where there are none."""
    if not unknown:
        return ""
    names = KnownNames.of(tree.columns.name_kinds())
    nearest = dict.fromkeys(near for name in unknown[:5] for near in names.nearest(name, most=1))
    meant = f" (did you mean {listed(map(repr, nearest))}?)" if nearest else ""
    return f"this {type(model).__name__} does not have {listed(map(repr, unknown))}{meant}; "
