"""`planner.load`: from the checkpoint's files to a model that runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, Unpack

import torch
from torch import nn

from planner.checkpoint.source import open_beside
from planner.dispatching.api import offloads_buffers, require_outside, resolve_map, staging_room
from planner.dispatching.install.device_map import (
    require_fit,
    require_unscripted,
    require_whole,
)
from planner.dispatching.install.request import DispatchRequest
from planner.errors import InvalidInputError
from planner.loading.load import LoadSource, prepare_load
from planner.loading.options import (
    Convert,
    Copy,
    LoadOptions,
    Progress,
    Read,
    cast_rule,
    planned_dtypes,
    wanted_dtype,
)
from planner.loading.skeleton import build_skeleton
from planner.loading.source import CheckpointSource, open_checkpoint
from planner.names import require_module, text_set
from planner.planning.api import plan_to_load
from planner.plans.plan import Plan
from planner.settings.keywords import LoadSettings

__all__ = ["load"]

_CPU = torch.device("cpu")


def load(
    checkpoint: str | os.PathLike[str],
    model: nn.Module | None = None,
    plan: Plan | Mapping[str, Any] | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    strict: bool = True,
    allow_missing: str | Iterable[str] = (),
    allow_unexpected: str | Iterable[str] = (),
    rename: Mapping[str, str | None] | Callable[[str], str | None] | None = None,
    copy: Copy = "auto",
    read: Read = "auto",
    convert: Convert = "fetch",
    staging_bytes: Mapping[Any, int] | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    execution_map: Mapping[str, Any] | None = None,
    offload_buffers: bool | None = None,
    skip_keys: str | Iterable[str] | None = None,
    outside: Literal["raise", "fetch"] = "raise",
    **settings: Unpack[LoadSettings],
) -> nn.Module:
    """Loads a model from its safetensors files to where a plan says, and makes it run there.

    Args:
        checkpoint: a folder, a safetensors file, an index, or a name on the hub that is in the hub's cache.
        model: what is loaded into, changed in place: on the meta device, or with values. By default the class that ``config.json``
            names, made by transformers, in evaluation mode; no code that comes with the checkpoint is run.
        plan: a plan, or a device map. By default ``plan(model, checkpoint=…, **settings)``, where "disk" means the files
            themselves: without budgets it is there without a limit, with budgets only if it is one of them.
        dtype: "auto", what the plan was made for, else as stored; or one dtype for all floating tensors. Packed ones and integers
            are never cast.
        strict: whether names that only the files have, and tensors that only the model has, are errors. Otherwise the first are
            noted, and the second keep the values that they have. What the class itself ignores never counts.
        allow_missing: globs of tensors that no file need have: they keep their values, or the model's own code makes them.
        allow_unexpected: globs of names in the files that the model need not have.
        rename: names in the files to names in the model, for models that are not of transformers; None leaves a tensor there.
        copy: whether what stays on the CPU is read into memory of its own; "auto" where the files lie on a network or FUSE file
            system. Otherwise it is a view of the files.
        read: how blocks on disk are read: "auto" uses the page cache where they are in it, "cached" always goes through it,
            "direct" past it.
        convert: what is stored in another form than it has in memory is made at each use ("fetch"), or written once to
            ``offload_folder`` ("store").
        staging_bytes: by device, what blocks may take there while they are streamed; "cpu" is for those that are read from disk.
            By default two of the largest block on the CPU, and what the plan kept or left free.
        offload_folder: for ``convert="store"``.
        progress: is called with bytes done and bytes in all; by default there is a bar on a terminal after a second.
        execution_map: as in :func:`planner.dispatch`.
        offload_buffers: as in :func:`planner.dispatch`.
        skip_keys: as in :func:`planner.dispatch`.
        outside: as in :func:`planner.dispatch`.
        settings: of :func:`planner.plan`, where there is no plan yet.

    Returns:
        The model, with ``hf_device_map``; :func:`planner.load_report` says what was done.

    Raises:
        CheckpointError: files that are missing, malformed or hostile, or do not fit the model; all findings at once. Fields:
            ``file``, ``reason``, ``findings``.
        InfeasibleError: no plan. Fields: as of :func:`planner.plan`.
        PlanMismatchError, InvalidTreeError, InvalidDevicesError: a plan that does not fit the model or this machine.
        OffloadError: a number that ``dtype`` cannot hold. Fields: ``name``.
        InvalidInputError: options that make no sense.

    Guarantee: everything is judged before anything is changed, and an error or an interrupt leaves the model as it was. The
        outputs are those of the undispatched model. No file is written but with ``convert="store"``. With one device and nothing
        on disk, nothing is attached to the model.

    Cost: headers, and what has to be copied or moved; views are read when they are used.
    """
    require_outside(outside)
    if isinstance(plan, Plan):
        dtype, special_dtypes = planned_dtypes(plan, dtype)
    else:
        said = settings.get("special_dtypes")
        special_dtypes = said if isinstance(said, Mapping) else {}  # what is none, the plan refuses
    options = LoadOptions.of(
        dtype_of=cast_rule(dtype, special_dtypes),
        strict=strict,
        allow_missing=allow_missing,
        allow_unexpected=allow_unexpected,
        rename=rename,
        copy=copy,
        read=read,
        convert=convert,
        offload_folder=offload_folder,
        progress=progress,
    )
    if plan is not None and settings:
        raise InvalidInputError(
            f"the settings {', '.join(settings)} make a plan, but there is one already; leave out either"
        )
    if model is not None:
        require_module(model)
    source = open_checkpoint(checkpoint)
    if model is None:
        model = build_skeleton(source.files, source.rows, wanted_dtype(dtype))
    if plan is None:
        plan = _plan(model, source, dtype, settings, offload_buffers)
    resolved_map = resolve_map(plan, execution_map)
    require_fit(model, resolved_map)
    require_whole(model, resolved_map)
    require_unscripted(model, resolved_map)
    request = DispatchRequest(
        resolved_map=resolved_map,
        offload_buffers=offloads_buffers(plan) if offload_buffers is None else offload_buffers,
        skip_keys=text_set(skip_keys, "skip_keys"),
        outside=outside,
        says_device=True,
        home=_CPU,
        room_bytes=staging_room(plan, staging_bytes),
    )
    options = replace(options, free_bytes=_cpu_bytes_left(plan))
    prepare_load(model, LoadSource.of(source), request, options).commit()
    return model


def _cpu_bytes_left(plan: Any) -> int | None:
    """What a plan has kept or left free on the CPU."""
    rows = [row for row in plan.devices if row.kind == "cpu"] if isinstance(plan, Plan) else []
    return rows[0].reserved_bytes + (rows[0].free_bytes or 0) if rows else None


def _plan(
    model: nn.Module,
    source: CheckpointSource,
    dtype: Any,
    settings: Mapping[str, Any],
    offload_buffers: bool | None,
) -> Plan:
    """A plan of a model, with the sizes that its tensors will have."""
    wanted = dict(settings) if dtype == "auto" else {"dtype": dtype, **settings}
    if offload_buffers is not None:
        wanted["offload_buffers"] = offload_buffers
    return plan_to_load(open_beside(model, source.files, source.headers), wanted)
