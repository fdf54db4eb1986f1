"""accelerate's functions that place a whole model, on our dispatch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, Final, Literal

import torch
from torch import nn

from planner.compat.accelerate import check_device_map
from planner.compat.disk_part import disk_part, has_index, require_flat, write_once
from planner.compat.loaded import weights_in_files
from planner.dispatching.api import carry_out
from planner.dispatching.hooks.attach import add_hook_to_module
from planner.dispatching.hooks.moving import CpuOffload, UserCpuOffloadHook
from planner.dispatching.install.device_map import ResolvedDeviceMap, require_whole
from planner.dispatching.install.regions import Placement
from planner.dispatching.install.request import DispatchRequest
from planner.dispatching.offload.weight_files import OffloadedWeightsLoader
from planner.dispatching.tensors.slots import require_initialised, resolve_device
from planner.errors import InvalidConstraintError
from planner.loading.streams import streams_of
from planner.loading.weights import FileWeights
from planner.names import text_set
from planner.plans.device_map import DeviceMap

__all__ = [
    "cpu_offload",
    "cpu_offload_with_hook",
    "disk_offload",
    "dispatch_model",
    "place_model",
    "require_cover",
]

_CPU: Final = torch.device("cpu")
_NOWHERE: Final = torch.empty(0, device="meta")


def dispatch_model(
    model: nn.Module,
    device_map: Mapping[str, Any],
    main_device: int | str | torch.device | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    offload_dir: str | os.PathLike[str] | None = None,
    offload_index: Mapping[str, Any] | None = None,
    offload_buffers: bool = False,
    skip_keys: str | Iterable[str] | None = None,
    preload_module_classes: Iterable[str] | None = None,
    force_hooks: bool = False,
) -> nn.Module:
    """Puts a model where a device map says, and makes it run there.

    Args:
        model: the model; changed in place.
        device_map: names to devices; "disk", too.
        main_device: where what is on "cpu" or "disk" runs; by default the first accelerator of the map, without one the
            CPU, where what is on "cpu" then simply stays.
        state_dict: weights of the part that is on "cpu"; by default the model's own.
        offload_dir: where the part on "disk" is, or is written to. A model that was loaded from safetensors files needs none: it
            uses those.
        offload_index: rows that say in which files the part on "disk" is; by default those of ``offload_dir``.
        offload_buffers: saved buffers are offloaded with the weights.
        skip_keys: keyword arguments and keys that never cross.
        preload_module_classes: classes whose instances are brought in whole.
        force_hooks: borders, too, if there is one device.

    Returns:
        The model, with ``hf_device_map``.

    Raises:
        InvalidConstraintError: tensors without a device. Fields: ``names``.
        InvalidInputError: no mapping; or a part on "disk" and neither folder nor index.
        PlanMismatchError, OffloadError: as :func:`planner.dispatch`.

    Guarantee: as :func:`planner.dispatch`.

    Source: accelerate 1.15, big_modeling.py; differences are listed in docs/divergences.md.
    """
    return place_model(
        model,
        device_map,
        main_device,
        state_dict,
        offload_dir,
        offload_index,
        offload_buffers,
        skip_keys,
        preload_module_classes,
        force_hooks,
    )


def place_model(
    model: nn.Module,
    device_map: Mapping[str, Any],
    main_device: int | str | torch.device | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    offload_dir: str | os.PathLike[str] | None = None,
    offload_index: Mapping[str, Any] | None = None,
    offload_buffers: bool = False,
    skip_keys: str | Iterable[str] | None = None,
    preload_module_classes: Iterable[str] | None = None,
    force_hooks: bool = False,
    *,
    outside: Literal["raise", "fetch"] = "raise",
    comes_from_files: bool = False,
) -> nn.Module:
    """:func:`dispatch_model`, with what its callers decide.

    Args:
        outside: as of :func:`planner.dispatch`.
        comes_from_files: the model was loaded just now, so all of it counts as having lain on the CPU, or in its files.
    """
    resolved_map = _resolved(device_map, main_device)
    require_cover(model, device_map)
    require_whole(model, resolved_map)
    on_disk = [name for name, key in resolved_map.keys.items() if key == "disk"]
    weights: Mapping[str, Any] | None = None if state_dict is None else OffloadedWeightsLoader(state_dict)
    in_files = None
    if on_disk:
        weights, in_files = disk_part(
            model,
            resolved_map.keys,
            offload_dir=offload_dir,
            offload_index=offload_index,
            state_dict=state_dict,
            offload_buffers=offload_buffers,
        )
    streams = streams_of(in_files)
    carry_out(
        model,
        DispatchRequest(
            resolved_map=resolved_map,
            offload_buffers=offload_buffers,
            skip_keys=text_set(skip_keys, "skip_keys"),
            outside=outside,
            weights=weights,
            home=_CPU if comes_from_files or in_files is not None else None,
            stays_in_files=comes_from_files or (in_files is not None and in_files.lists_files),
            force_borders=force_hooks,
            whole_classes=text_set(preload_module_classes, "preload_module_classes"),
            reads_ahead=streams.made,
        ),
    )
    streams.start()
    return model


def _resolved(device_map: Mapping[str, Any], main_device: Any) -> ResolvedDeviceMap:
    if isinstance(device_map, DeviceMap) and main_device is None:
        return ResolvedDeviceMap.of_plan(device_map)
    return ResolvedDeviceMap(device_map, main_device=main_device)


def require_cover(model: nn.Module, device_map: Mapping[str, Any]) -> None:
    """Raises InvalidConstraintError unless a map has a device for every tensor that the model's class wants placed."""
    exempt = set(getattr(model, "_no_placement_params", None) or ())
    try:
        check_device_map(model, device_map)
    except InvalidConstraintError as error:
        if not exempt.issuperset(error.names):
            raise


def cpu_offload(
    model: nn.Module,
    execution_device: int | str | torch.device | None = None,
    offload_buffers: bool = False,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    preload_module_classes: Iterable[str] | None = None,
) -> nn.Module:
    """Keeps all weights on the CPU; each module gets its own where it runs, and only then.

    Args:
        model: the model; changed in place.
        execution_device: where it runs; by default where its first parameter is.
        offload_buffers: saved buffers rest on the CPU, too.
        state_dict: the weights; by default the model's own.
        preload_module_classes: classes whose instances are brought in whole.

    Returns:
        The model.

    Source: accelerate 1.15, big_modeling.py.
    """
    weights = None if state_dict is None else OffloadedWeightsLoader(state_dict)
    storage_device = torch.device("cpu")
    return _offload_all(
        model, storage_device, execution_device, offload_buffers, weights, preload_module_classes
    )


def disk_offload(
    model: nn.Module,
    offload_dir: str | os.PathLike[str],
    execution_device: int | str | torch.device | None = None,
    offload_buffers: bool = False,
    preload_module_classes: Iterable[str] | None = None,
) -> nn.Module:
    """Keeps all weights in a folder; each module gets its own where it runs, and only then.

    Args:
        model: the model; changed in place.
        offload_dir: the folder; weights are written to it, unless it has an index already, or the model was loaded from safetensors
            files and still has the values of these: then they stay there.
        execution_device: where it runs; by default where its first parameter is.
        offload_buffers: saved buffers rest there, too.
        preload_module_classes: classes whose instances are brought in whole.

    Returns:
        The model.

    Source: accelerate 1.15, big_modeling.py.
    """
    require_initialised(model)
    if not has_index(offload_dir):
        in_files = weights_in_files(model, [""], offload_buffers=offload_buffers)
        if in_files is not None:
            return _offload_all(
                model, None, execution_device, offload_buffers, in_files, preload_module_classes
            )
    require_flat(model, [""])
    write_once(offload_dir, model, [""])
    weights = OffloadedWeightsLoader(save_folder=offload_dir)
    return _offload_all(model, None, execution_device, offload_buffers, weights, preload_module_classes)


def _offload_all(
    model: nn.Module,
    storage_device: torch.device | None,
    execution_device: Any,
    offload_buffers: bool,
    weights: Mapping[str, torch.Tensor] | None,
    preload_module_classes: Iterable[str] | None,
) -> nn.Module:
    require_initialised(model)
    in_files = weights if isinstance(weights, FileWeights) else None
    if execution_device is None:
        first = next(chain(model.parameters(), model.buffers()), _NOWHERE)
        is_nowhere = first.is_meta and (first is _NOWHERE or in_files is not None)
        execution_device = _CPU if is_nowhere else first.device
    device = resolve_device(execution_device)
    resolved_map = ResolvedDeviceMap({}, main_device="cpu" if device.type == "cpu" else device)
    resolved_map.placements[""] = Placement(storage_device, device, True)
    streams = streams_of(in_files)
    carry_out(
        model,
        DispatchRequest(
            resolved_map=resolved_map,
            offload_buffers=offload_buffers,
            weights=weights,
            home=None if in_files is None else _CPU,
            whole_classes=text_set(preload_module_classes, "preload_module_classes"),
            reads_ahead=streams.made,
        ),
    )
    streams.start()
    return model


def cpu_offload_with_hook(
    model: nn.Module,
    execution_device: int | str | torch.device | None = None,
    prev_module_hook: UserCpuOffloadHook | None = None,
) -> tuple[nn.Module, UserCpuOffloadHook]:
    """Keeps a model on the CPU until it is called; then it stays where it runs until the hook's ``offload`` is called.

    Args:
        model: the model; changed in place.
        execution_device: where it runs; by default the first accelerator, without one the CPU.
        prev_module_hook: of the model that runs before; it is offloaded when this one is called.

    Returns:
        The model and its hook, with ``offload()`` and ``remove()``.

    Source: accelerate 1.15, big_modeling.py.
    """
    hook = CpuOffload(execution_device, prev_module_hook)
    add_hook_to_module(model, hook, append=True)
    return model, UserCpuOffloadHook(model, hook)
