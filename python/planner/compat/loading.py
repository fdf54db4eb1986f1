"""accelerate's functions that load a checkpoint, on our reading of its files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import nn

from planner.compat.accelerate import get_balanced_memory, infer_auto_device_map
from planner.compat.dat_files import pickled_part
from planner.compat.dispatching import require_cover
from planner.compat.distributed import is_asked_for, load_distributed
from planner.compat.load_rules import cast_rule, places_of, require_device, without_scales
from planner.compat.ties import check_tied_parameters_on_same_device, find_tied_parameters
from planner.compat.weight_source import WeightSource, open_weights
from planner.dispatching.install.device_map import ResolvedDeviceMap, require_unscripted, require_whole
from planner.dispatching.install.record import dispatched_models
from planner.dispatching.install.request import DispatchRequest
from planner.errors import InvalidInputError
from planner.loading.load import LoadSource, PreparedLoad, prepare_load
from planner.loading.options import LoadOptions
from planner.loading.report import load_report
from planner.loading.source import require_nothing
from planner.loading.targets import CastRule, Leniency
from planner.names import listed, require_map, require_module, text_set
from planner.spelling import shown

__all__ = ["load_checkpoint_and_dispatch", "load_checkpoint_in_model"]

logger = logging.getLogger(__name__)

_WORDS: Final = ("auto", "balanced", "balanced_low_0", "sequential")
_CPU: Final = torch.device("cpu")
_HALVES: Final = (torch.float16, torch.bfloat16)


def load_checkpoint_and_dispatch(
    model: nn.Module,
    checkpoint: str | os.PathLike[str],
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[Any, Any] | None = None,
    no_split_module_classes: Iterable[str] | str | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
    offload_buffers: bool = False,
    dtype: str | torch.dtype | None = None,
    offload_state_dict: bool | None = None,
    skip_keys: str | Iterable[str] | None = None,
    preload_module_classes: Iterable[str] | None = None,
    force_hooks: bool = False,
    strict: bool = False,
    full_state_dict: bool = True,
    broadcast_from_rank0: bool = False,
) -> nn.Module:
    """Loads a checkpoint into a model where a device map says, and makes it run there.

    Args:
        model: the model, on the meta device or with values; changed in place.
        checkpoint: a safetensors file, a pickled state dict, an index, or a folder with one of these; of a folder with both, the
            safetensors files count.
        device_map: names to devices, "disk" too; or "auto", "balanced", "balanced_low_0", "sequential"; None loads and dispatches
            nothing.
        max_memory: for a map in a word, device to budget.
        no_split_module_classes: likewise, classes of modules that stay whole.
        offload_folder: where the part on disk of a pickled checkpoint is written to. Nothing is written of safetensors files: they are
            read in place.
        offload_buffers: saved buffers are offloaded with the weights.
        dtype: what floating tensors become; by default the dtypes of the model.
        offload_state_dict: without effect; nothing is held twice.
        skip_keys: keyword arguments and keys that never cross.
        preload_module_classes: classes whose instances are brought in whole.
        force_hooks: borders, too, if there is one device.
        strict: whether names that only one side has are errors.
        full_state_dict: False with ``device_map=None`` and a process group is a matter of torch's ``set_model_state_dict``.
        broadcast_from_rank0: likewise, so that the first rank alone reads the checkpoint.

    Returns:
        The model.

    Raises:
        CheckpointError: files that are missing, malformed or hostile, or do not fit the model; all findings at once. Fields:
            ``file``, ``reason``, ``findings``.
        InvalidInputError: another word for a map, a dtype that is none, or pickled weights for disk and no folder.
        InvalidConstraintError, PlanMismatchError: a map that does not fit the model.
        OffloadError: a number that ``dtype`` cannot hold, or a folder that cannot be written to. Fields: ``name``.

    Guarantee: everything is judged before anything is changed, and an error or an interrupt leaves the model as it was. Nothing of a
        pickle's choice is run.

    Source: accelerate 1.15, big_modeling.py; differences are listed in docs/divergences.md.
    """
    require_module(model)
    device_map = _map_of(
        model, device_map, max_memory, no_split_module_classes, dtype, offload_buffers=offload_buffers
    )
    if device_map is None:
        _load_in_place(
            model,
            checkpoint,
            cast_rule(dtype, None),
            strict=strict,
            full_state_dict=full_state_dict,
            broadcast_from_rank0=broadcast_from_rank0,
            leaves_missing=False,
            offload_folder=offload_folder,
        )
        return model
    check_tied_parameters_on_same_device(find_tied_parameters(model), device_map)
    resolved_map = ResolvedDeviceMap(device_map)
    require_cover(model, device_map)
    require_whole(model, resolved_map)
    require_unscripted(model, resolved_map)
    request = DispatchRequest(
        resolved_map=resolved_map,
        offload_buffers=bool(offload_buffers),
        skip_keys=text_set(skip_keys, "skip_keys"),
        force_borders=bool(force_hooks),
        whole_classes=text_set(preload_module_classes, "preload_module_classes"),
        home=_CPU,
    )
    source = open_weights(checkpoint)
    prepared = _prepared(model, source, request, cast_rule(dtype, None), strict=strict)
    with pickled_part(prepared, source, offload_folder) as weights:
        prepared.commit(weights)
    _tell_unexpected(model, source)
    return model


def load_checkpoint_in_model(
    model: nn.Module,
    checkpoint: str | os.PathLike[str],
    device_map: Mapping[str, Any] | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    offload_state_dict: bool = False,
    offload_buffers: bool = False,
    keep_in_fp32_modules: Iterable[str] | None = None,
    offload_8bit_bnb: bool = False,
    strict: bool = False,
    full_state_dict: bool = True,
    broadcast_from_rank0: bool = False,
) -> None:
    """Loads a checkpoint into a model where a device map says, and attaches nothing.

    Args:
        model: the model, on the meta device or with values; changed in place.
        checkpoint: as of :func:`load_checkpoint_and_dispatch`.
        device_map: names to devices. What is on "disk" has no values afterwards; :func:`planner.dispatch_model` and
            :func:`planner.disk_offload` find it in the checkpoint's files. None leaves tensors where they are, and puts those on
            the meta device on the CPU.
        offload_folder: as of :func:`load_checkpoint_and_dispatch`.
        dtype: what floating tensors become; by default the dtypes of the model.
        offload_state_dict: without effect; nothing is held twice.
        offload_buffers: saved buffers are left on disk with the weights.
        keep_in_fp32_modules: parts of names, such as "norm", of what becomes float32 where ``dtype`` is float16 or bfloat16.
        offload_8bit_bnb: refused; ``from_pretrained`` quantises.
        strict: whether names that only one side has are errors; otherwise tensors that no file has stay as they are.
        full_state_dict: as of :func:`load_checkpoint_and_dispatch`.
        broadcast_from_rank0: likewise.

    Raises:
        As :func:`load_checkpoint_and_dispatch`.

    Guarantee: as of that function.

    Source: accelerate 1.15, utils/modeling.py; differences are listed in docs/divergences.md.
    """
    require_module(model)
    if offload_8bit_bnb:
        raise InvalidInputError(
            "offload_8bit_bnb quantises while it loads, which is from_pretrained(folder, quantization_config=…, device_map=…)'s work; "
            "planner places what is stored"
        )
    dtype_of = cast_rule(dtype, keep_in_fp32_modules)
    if device_map is None:
        _load_in_place(
            model,
            checkpoint,
            dtype_of,
            strict=strict,
            full_state_dict=full_state_dict,
            broadcast_from_rank0=broadcast_from_rank0,
            leaves_missing=True,
            offload_folder=offload_folder,
        )
        return
    require_map(device_map)
    check_tied_parameters_on_same_device(find_tied_parameters(model), device_map)
    source = open_weights(checkpoint)
    require_device(model, device_map, source.rows)
    # What is on the CPU shall be there, although it would run elsewhere once the model is dispatched.
    resolved_map = ResolvedDeviceMap(device_map, main_device="cpu")
    require_whole(model, resolved_map)
    request = DispatchRequest(resolved_map=resolved_map, offload_buffers=bool(offload_buffers))
    prepared = _prepared(model, source, request, dtype_of, strict=strict, leaves_missing=True)
    with pickled_part(prepared, source, offload_folder):
        prepared.commit(is_dispatched=False)
    _tell_unexpected(model, source)


def _map_of(
    model: nn.Module,
    device_map: str | Mapping[str, Any] | None,
    max_memory: Mapping[Any, Any] | None,
    no_split: Iterable[str] | str | None,
    dtype: str | torch.dtype | None,
    *,
    offload_buffers: bool,
) -> Mapping[str, Any] | None:
    if device_map is None:
        return None
    if not isinstance(device_map, str):
        require_map(device_map)
        return device_map
    if device_map not in _WORDS:
        words = ", ".join(map(repr, _WORDS))
        raise InvalidInputError(f"device_map is names to devices, or one of {words}; got {shown(device_map)}")
    if device_map != "sequential":
        is_low = device_map == "balanced_low_0"
        max_memory = get_balanced_memory(model, max_memory, no_split, dtype, low_zero=is_low)
    return infer_auto_device_map(model, max_memory, no_split, dtype, offload_buffers=offload_buffers)


def _load_in_place(
    model: nn.Module,
    checkpoint: str | os.PathLike[str],
    dtype_of: CastRule,
    *,
    strict: bool,
    full_state_dict: bool,
    broadcast_from_rank0: bool,
    leaves_missing: bool,
    offload_folder: str | os.PathLike[str] | None,
) -> None:
    """Loads without a map: a model that is dispatched keeps its own; of others every tensor stays where it is, and one on the meta
    device comes to the CPU."""
    if is_asked_for(model, full_state_dict=full_state_dict, broadcast_from_rank0=broadcast_from_rank0):
        load_distributed(
            model,
            checkpoint,
            strict=strict,
            full_state_dict=full_state_dict,
            broadcast_from_rank0=broadcast_from_rank0,
        )
        return
    source = open_weights(checkpoint)
    earlier: Any = getattr(model, "hf_device_map", None) if dispatched_models(model) else None
    resolved_map = places_of(model) if earlier is None else ResolvedDeviceMap(earlier)
    request = DispatchRequest(resolved_map=resolved_map)
    prepared = _prepared(model, source, request, dtype_of, strict=strict, leaves_missing=leaves_missing)
    with pickled_part(prepared, source, offload_folder, may_hold=True) as weights:
        prepared.commit(weights, is_dispatched=earlier is not None)
    _tell_unexpected(model, source)


def _prepared(
    model: nn.Module,
    source: WeightSource,
    request: DispatchRequest,
    dtype_of: CastRule,
    *,
    strict: bool,
    leaves_missing: bool = False,
) -> PreparedLoad:
    if strict and source.others:
        require_nothing([f"the file has {listed(source.others)}, which are no tensors"], source.name)
    options = LoadOptions(
        dtype_of=dtype_of,
        leniency=Leniency(strict=bool(strict), leaves_missing=leaves_missing and not strict),
        copy=True if source.is_pickled else "auto",
    )
    rows = without_scales(model, source.rows)
    return prepare_load(model, LoadSource(source.name, source.files, rows), request, options)


def _tell_unexpected(model: nn.Module, source: WeightSource) -> None:
    unexpected = (*load_report(model).unexpected, *source.others)
    if unexpected:
        logger.warning(
            "Some weights of the model checkpoint at %s were not used when initializing %s: %s. This may or may not be an issue: the "
            "checkpoint may hold more than this model has places for.",
            source.name,
            type(model).__name__,
            listed(unexpected, most=50),
        )
