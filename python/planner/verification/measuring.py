"""Measuring: a plan's workload run by the dispatched model, and what its accelerators have counted."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from planner.devices.keys import DeviceKey, accelerator_backend
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.dispatching.tensors.slots import resolve_device
from planner.errors import InvalidInputError
from planner.memory.recording.caches import streaming_cache
from planner.memory.recording.session import Forwards, RecordedRun
from planner.memory.recording.workloads import WorkloadRun, runs_of
from planner.names import require_module
from planner.plans.plan import Plan
from planner.settings.workload import Workload
from planner.spelling import shown
from planner.units import format_bytes
from planner.verification.measurable import named_inputs, require_dispatched, require_measurable
from planner.verification.peak_rows import PeakRow, execution_devices, inputs_device, peak_rows
from planner.verification.placed_run import warming, workload_input

__all__ = ["Measurement", "measure"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a plan predicts of its accelerators' memory, beside what these have counted.

    Args:
        peaks: by phase and device.
        steps: how many tokens were decoded after the prompt.
        reserved_bytes: by accelerator, the most that torch's allocator has held there, for whomever; none where it does not tell.

    Example:
        >>> print(Measurement((PeakRow(0, "prefill", 2048, 2048), PeakRow(0, "decode", 2048, 1024)), steps=2))
        memory, as planned and as measured (2 steps):
          0, prefill: predicted 2.00 KiB, found 2.00 KiB (equal)
          0, decode: predicted 2.00 KiB, found 1.00 KiB (50.0 % below)
    """

    peaks: tuple[PeakRow, ...]
    steps: int
    reserved_bytes: Mapping[DeviceKey, int] = field(default_factory=dict)

    def __str__(self) -> str:
        head = f"memory, as planned and as measured ({self.steps} step{'' if self.steps == 1 else 's'}):"
        held = [
            f"  {device}: its allocator has held {format_bytes(size)}"
            for device, size in self.reserved_bytes.items()
        ]
        return "\n".join([head, *(f"  {row}" for row in self.peaks), *held])


def measure(model: nn.Module, plan: Plan, inputs: Any = None, *, steps: int | None = None) -> Measurement:
    """Runs a plan's workload and says what its accelerators have needed at most, beside what the plan predicts.

    Args:
        model: dispatched by this plan, in ``eval`` mode.
        plan: a plan with a workload.
        inputs: arguments of the prompt's forward, of the shapes that the workload says: a tensor, a tuple of positional ones, or a
            mapping of keywords. Without them, a prompt is made up.
        steps: tokens that are decoded after the prompt; by default all up to the end of the context.

    Returns:
        A :class:`Measurement`: a row for each phase and accelerator that runs something. ``found_bytes`` is what torch calls
        ``max_memory_allocated``, less what else lies there.

    Raises:
        InvalidInputError: no plan, one without a workload, or none of whose blocks run on accelerators that count; inputs of other names
            or shapes than the workload's; a workload that cannot be run; a model in training mode.
        PlanMismatchError: the model is not dispatched by this plan. Fields: ``findings``.

    Guarantee: all of these are raised before anything runs. The model and its tensors stay as they are, and caches go; torch's peak
        counters of these accelerators begin anew.

    Cost: the forwards that it runs: one for the prompt and one for each further token of the context; where blocks are offloaded, one
        more of the prompt and one of a token, in which their order is learnt.
    """
    require_module(model)
    if not isinstance(plan, Plan):
        raise InvalidInputError(
            f"measure() wants a plan with a workload, not {shown(plan)}; planner.plan(model, …, workload=…) makes one"
        )
    workload = require_measurable(model, plan, steps)
    require_dispatched(model, plan)
    given = named_inputs(model, workload, inputs)
    counters = _Counters(model, plan)
    runs = list(_runs(model, workload, steps))
    with _collected(), torch.no_grad():
        for warm in warming(plan, runs[0].run):
            Forwards(model, _Unwatched(), warm, _Given(given, workload, counters.main_device)).run()
        for run in runs:
            counters.begin(is_told=run.is_told)
            Forwards(model, counters, run.run, _Given(given, workload, counters.main_device)).run()
            given = {}
    return Measurement(
        peak_rows(plan, counters.peaks),
        steps=sum(run.run.steps for run in runs),
        reserved_bytes=counters.reserved_bytes,
    )


# ---- What is run


@dataclass(frozen=True, slots=True)
class _Run:
    run: RecordedRun
    is_told: bool = True  # all of its forwards; else its last one


def _runs(model: nn.Module, workload: Workload, steps: int | None) -> Iterator[_Run]:
    """What a workload asks for, with no longer prompt than it says."""
    first, *others = (_as_run(each, workload) for each in runs_of(model, workload))
    after = workload.context_length - workload.prompt_tokens
    if after and workload.cache != "none":
        yield _Run(replace(first.run, steps=after if steps is None else min(steps, after)))
        return
    yield _Run(first.run)
    if steps is None or steps:
        yield from (_Run(other.run, is_told=False) for other in others)


def _as_run(each: WorkloadRun, workload: Workload) -> WorkloadRun:
    """The run with transformers' own offloaded cache where there are streams for it; elsewhere ours does the same without."""
    is_own = workload.cache == "offloaded" and workload.cache_dtype is None
    if not is_own or accelerator_backend() is not torch.cuda:
        return each
    return replace(each, run=replace(each.run, cache=streaming_cache))


class _Given:
    """Inputs as the caller has given them, and others made up."""

    def __init__(self, inputs: Mapping[str, torch.Tensor], workload: Workload, device: torch.device) -> None:
        self.inputs = dict(inputs)
        self.workload = workload
        self.device = device

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        given = self.inputs.pop(name, None)  # of the first forward
        if given is not None:
            return given.to(self.device)
        return workload_input(name, shape, dtype, self.device, is_padded=self.workload.is_padded)


@contextmanager
def _collected() -> Iterator[None]:
    """Garbage goes before, and never between."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        gc.collect()


# ---- What is counted


class _Unwatched:
    def phase(self, name: str) -> None:
        pass

    def output(self, value: Any) -> None:
        pass

    def after(self) -> None:
        pass


class _Counters:
    """The counters of the accelerators that a plan runs something on; is told of forwards."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.model = model
        self.backend: Any = accelerator_backend()
        running = execution_devices(plan)
        self.main_device = resolve_device(inputs_device(plan))
        self.devices = {key: resolve_device(key) for key in running if isinstance(key, int)}
        self.peaks: dict[str, dict[DeviceKey, int]] = {}
        self.reserved_bytes: dict[DeviceKey, int] = {}
        self._other_bytes: dict[DeviceKey, int] = {}
        self._now = ""
        self._is_told = True

    def begin(self, *, is_told: bool) -> None:
        """A run begins; what lies there and is not the model's is somebody else's."""
        self._is_told = is_told
        for key, device in self.devices.items():
            lies_bytes = model_bytes(self.model, device)
            self._other_bytes[key] = int(self.backend.memory_allocated(device)) - lies_bytes

    def phase(self, name: str) -> None:
        """A forward begins."""
        self._now = name
        for device in self.devices.values():
            self.backend.reset_peak_memory_stats(device)

    def output(self, value: Any) -> None:
        """It has returned something."""
        found: dict[DeviceKey, int] = {
            key: int(self.backend.max_memory_allocated(device)) - self._other_bytes[key]
            for key, device in self.devices.items()
        }
        if hasattr(self.backend, "max_memory_reserved"):
            for key, device in self.devices.items():
                held_bytes = int(self.backend.max_memory_reserved(device))
                self.reserved_bytes[key] = max(held_bytes, self.reserved_bytes.get(key, 0))
        # The other forwards of a run that only leads to its last one are not the plan's.
        if self._is_told or self._now == "decode 2":
            most = self.peaks.setdefault(self._now, {})
            most.update({key: max(size, most.get(key, 0)) for key, size in found.items()})

    def after(self) -> None:
        """What it has returned has been let go."""


def model_bytes(model: nn.Module, device: torch.device) -> int:
    """Bytes of a model's tensors on a device, each storage once."""
    found: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if not is_offloaded(tensor) and tensor.device == device:
            storage = tensor.untyped_storage()
            found[storage._cdata] = storage.nbytes()
    return sum(found.values())
