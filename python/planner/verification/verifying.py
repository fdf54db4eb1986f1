"""Verifying: the model's structure in fake tensors, dispatched as the model would be, and one forward of it."""

from __future__ import annotations

import logging
import random
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from planner.devices.keys import DeviceKey, accelerator_count
from planner.dispatching.install.device_map import (
    ResolvedDeviceMap,
    require_fit,
    require_unscripted,
    require_whole,
)
from planner.dispatching.install.record import RECORD, is_part
from planner.errors import InvalidInputError, PlanMismatchError, PlannerError
from planner.memory.recording.workloads import runs_of
from planner.names import require_module
from planner.plans.plan import Plan
from planner.plans.workload import workload_of
from planner.settings.workload import Workload
from planner.spelling import shown
from planner.verification.absent_devices import asked_here, is_of_absent
from planner.verification.attempts import Attempt
from planner.verification.peak_rows import peak_rows
from planner.verification.placed_run import placed_peaks, workload_input
from planner.verification.sample_inputs import sample_inputs
from planner.verification.verdict import Verification

__all__ = ["verify"]


def verify(model: nn.Module, plan: Plan | Mapping[str, Any], inputs: Any = None) -> Verification:
    """Says whether a model would run as a plan has it, and where its own code would cross devices; nothing is moved.

    Args:
        model: a model, with its weights or on the meta device; only looked at.
        plan: a plan, or a device map. Its devices need not be there.
        inputs: arguments of one forward: a tensor, a tuple of positional ones, or a mapping of keywords. Without them, those of the
            plan's workload, if that tells shapes (``workload.inputs``), else the class's own main input, where its configuration
            tells the shape.

    Returns:
        A :class:`Verification`. What :func:`planner.dispatch` would refuse does not run, with its words. ``runs`` is None where the
        model branches on values that come from weights (experts that it loops over), or needs what has no fake.

    Raises:
        InvalidInputError: no plan; inputs that the undispatched model does not take either, or none where they cannot be told.
        InvalidDevicesError: a device that is none.

    Guarantee: the model, its hooks, its buffers, random numbers and the gradient mode stay as they are, also when this raises. No byte
        of a weight is read or allocated. Borders, placeholders and crossings are those of :func:`planner.dispatch`. Values that follow
        from the inputs alone (masks, lengths, positions) are computed, and may be branched on. Peaks are counted as the dispatched model
        makes and drops storages: arguments moved at borders, offloaded blocks brought in and copied ahead. They share no code with
        the replay that predicts them, but the table of attention kernels and of operators that are made of others.

    Cost: a forward's time in Python, some 50 ms for a decoder layer; nothing grows with the size of the weights. With a workload three
        to eight forwards more.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> print(verify(net, {"0": 0, "1": 1}, torch.ones(1, 2)))
        runs
    """
    require_module(model)
    if not isinstance(plan, Plan | Mapping):
        raise InvalidInputError(
            f"verify() wants a plan, or a device map (names to devices), not {shown(plan)}; planner.plan(model, …) makes one"
        )
    resolved_map = _resolved_map(plan)
    workload = workload_of(plan) if isinstance(plan, Plan) else None
    args, kwargs = _arguments(_inputs_of(model, workload) if inputs is None else inputs)
    try:
        _require_whole_model(model)
        require_fit(model, resolved_map)
        require_whole(model, resolved_map)
        require_unscripted(model, resolved_map)
    except PlannerError as error:
        return Verification(False, str(error), ())
    with _as_before(), asked_here():
        found = _verdict(model, resolved_map, args, kwargs)
        if found.runs is False or not isinstance(plan, Plan) or workload is None:
            return found
        return replace(found, **_peaks(model, plan, workload, resolved_map))


# ---- Devices


def _kind() -> str | None:
    """What accelerators of this machine are, as models tell it from ``device.type``; None if it has none with numbers."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if found is None or found.type == "mps" else found.type


def _resolved_map(plan: Plan | Mapping[str, Any]) -> ResolvedDeviceMap:
    return (
        ResolvedDeviceMap.of_plan(plan, _assumed)
        if isinstance(plan, Plan)
        else ResolvedDeviceMap(plan, assumed=_assumed)
    )


def _assumed(key: DeviceKey) -> torch.device:
    """What torch calls a device of a plan, there or not; of those that are not, it knows CUDA's best."""
    if isinstance(key, int):
        return torch.device(_kind() or "cuda", key)
    return torch.device(key) if key == "cpu" else torch.device(key, 0)


# ---- Inputs


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    raise InvalidInputError(
        f"inputs are a tensor, a tuple of arguments or a mapping of keywords, not {type(inputs).__name__}"
    )


def _inputs_of(model: nn.Module, workload: Workload | None) -> dict[str, torch.Tensor]:
    """Those of a workload that tells shapes, else the class's own main input.

    Raises:
        InvalidInputError: neither is told.
    """
    if workload is None or not workload.inputs:
        try:
            return sample_inputs(model)
        except InvalidInputError:
            if workload is None or isinstance(getattr(model, "main_input_name", None), str):
                raise
    first = next(runs_of(model, workload)).run
    return {
        name: workload_input(name, *said, torch.device("cpu"), is_padded=workload.is_padded)
        if not said[1].is_floating_point
        else torch.empty(said[0], dtype=said[1], device="meta")  # its values are not asked for
        for name, said in first.inputs.items()
    }


def _require_whole_model(model: nn.Module) -> None:
    if RECORD not in model.__dict__ and is_part(model):
        raise PlanMismatchError(
            f"this {type(model).__name__} is part of a larger model that is dispatched; dispatch or undispatch that one",
            findings=(),
        )


# ---- The verdict


def _verdict(
    model: nn.Module, resolved_map: ResolvedDeviceMap, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Verification:
    # Devices that are not there are called as the plan calls them.
    kind = "cuda" if _kind() is None else None
    planned = Attempt(model, resolved_map, args, kwargs, kind)
    if planned.error is None:
        return Verification(True, None, planned.crossings())
    if planned.is_refused:
        return Verification(False, planned.words(), planned.crossings())
    if planned.is_unknowable:
        return Verification(None, _untold(planned), planned.crossings())
    if planned.is_question:
        return Verification(None, _asked(planned, resolved_map), planned.crossings())
    # Something else: is the plan to blame, or the inputs, or this machine?
    alone = Attempt(model, None, args, kwargs, kind)
    if alone.is_unknowable:
        return Verification(None, _untold(alone), planned.crossings())
    if alone.error is not None:
        raise InvalidInputError(
            f"without any plan, a forward of this {type(model).__name__} with these inputs fails, too: {alone.words()}; give inputs "
            "that it takes: verify(model, plan, inputs=…)"
        ) from alone.error
    if any(Attempt(model, each, args, kwargs, kind).error for each in _on_one_accelerator(resolved_map)):
        return Verification(None, _asked(planned, resolved_map), planned.crossings())
    return Verification(False, planned.words(), planned.crossings())


def _untold(attempt: Attempt) -> str:
    return f"it depends on what fake tensors do not have, values or a kernel: {attempt.words()}"


def _asked(attempt: Attempt, resolved_map: ResolvedDeviceMap) -> str:
    count = accelerator_count()
    absent = [device.index for device in _accelerators(resolved_map) if device.index >= count]
    if count and absent and attempt.error is not None and is_of_absent(attempt.error):
        return (
            f"its code has torch make an accelerator the current one, indexing does, and the plan names {absent}; this machine has "
            f"{count} (numbers below {count} would do): verify it where there are {absent[-1] + 1}, or in a process that sees none, "
            f"started with CUDA_VISIBLE_DEVICES='', where torch leaves that out: {attempt.words()}"
        )
    return f"on an accelerator, its code asks for what is not there: {attempt.words()}"


def _accelerators(resolved_map: ResolvedDeviceMap) -> list[torch.device]:
    """Those on which a plan runs something, in the order of their numbers."""
    named = {
        placement.execution_device
        for placement in resolved_map.placements.values()
        if placement.execution_device.type != "cpu"
    }
    return sorted(named, key=lambda device: (device.type, device.index))


def _on_one_accelerator(resolved_map: ResolvedDeviceMap) -> Iterator[ResolvedDeviceMap]:
    """The whole model on the first of the accelerators that a plan names, and on the last if that is not there."""
    devices = _accelerators(resolved_map)
    absent = [device for device in devices[-1:] if device.index >= accelerator_count()]
    for device in dict.fromkeys(devices[:1] + absent):
        yield ResolvedDeviceMap({"": 0}, assumed=partial(_only, device))


def _only(device: torch.device, key: DeviceKey) -> torch.device:
    return torch.device("cpu") if key == "cpu" else device


# ---- Memory


def _peaks(
    model: nn.Module, plan: Plan, workload: Workload, resolved_map: ResolvedDeviceMap
) -> dict[str, Any]:
    """The parts of a verification that a workload adds."""
    devices = {device.id: _assumed(device.id) for device in plan.devices if device.kind != "disk"}
    try:
        found = placed_peaks(model, plan, workload, resolved_map, devices)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever the model's code raises is the answer)
        words = str(error) if isinstance(error, PlannerError) else f"{type(error).__name__}: {error}"
        return {"peaks_error": words.partition("\n")[0]}
    return {"peaks": peak_rows(plan, found)}


# ---- Leaving everything as it was


@contextmanager
def _as_before() -> Iterator[None]:
    """Random numbers go on afterwards where they were. What torch logs of fake tensors that fail, the verdict says."""
    numpy = sys.modules.get("numpy")
    state, other = torch.get_rng_state(), random.getstate()
    third = None if numpy is None else numpy.random.get_state()
    quiet = _Quiet(threading.get_ident())
    _FAKE_LOG.addFilter(quiet)
    try:
        yield
    finally:
        _FAKE_LOG.removeFilter(quiet)
        torch.set_rng_state(state)
        random.setstate(other)
        if numpy is not None:
            numpy.random.set_state(third)


class _Quiet(logging.Filter):
    """Drops what one thread logs."""

    def __init__(self, thread: int) -> None:
        super().__init__()
        self.thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether another thread logs this."""
        return record.thread != self.thread


_FAKE_LOG = logging.getLogger("torch._subclasses.fake_tensor")
