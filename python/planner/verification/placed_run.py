"""A plan's workload, run by the dispatched twin of a model: what each device of the plan holds at most."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.devices.keys import DeviceKey
from planner.dispatching.api import offloads_buffers, planned_room
from planner.dispatching.install.device_map import ResolvedDeviceMap
from planner.memory.recording.session import Forwards, RecordedRun, with_fused_experts
from planner.memory.recording.workloads import runs_of
from planner.plans.plan import Plan
from planner.settings.workload import Workload
from planner.verification.dispatched_twin import dispatch_twin, named_tensors
from planner.verification.known_values import KnownValues
from planner.verification.peak_rows import inputs_device
from planner.verification.storage_counter import AttentionKernels, StorageCounter
from planner.verification.twins import twin_of
from planner.verification.untraced import as_if_real
from planner.verification.whole_functions import WholeFunctions

__all__ = ["placed_peaks", "warming", "workload_input"]


def placed_peaks(
    model: nn.Module,
    plan: Plan,
    workload: Workload,
    resolved_map: ResolvedDeviceMap,
    devices: Mapping[DeviceKey, torch.device],
) -> dict[str, dict[DeviceKey, int]]:
    """By forward of a plan's workload and device, the most bytes of the model's twin there.

    Args:
        model: only looked at.
        plan: what it is placed by.
        workload: the plan's.
        resolved_map: the same plan for torch.
        devices: by key of the plan, what torch calls it.

    Raises:
        Exception: whatever the model's code raises where it needs more than fake tensors have.

    Cost: some 100 microseconds for each operator of a prefill and of two steps, twice where the prompt is not all of the context.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()  # what is freed, and when, is the same each time
    try:
        return _peaks(model, plan, workload, resolved_map, devices, devices[inputs_device(plan)])
    finally:
        if was_enabled:
            gc.enable()


def _peaks(
    model: nn.Module,
    plan: Plan,
    workload: Workload,
    resolved_map: ResolvedDeviceMap,
    devices: Mapping[DeviceKey, torch.device],
    main_device: torch.device,
) -> dict[str, dict[DeviceKey, int]]:
    known = KnownValues()
    counter = StorageCounter(known, is_padded=workload.is_padded)
    room = {devices[key]: size for key, size in planned_room(plan).items() if key in devices}
    found: dict[str, dict[DeviceKey, int]] = {}

    def given(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return workload_input(name, shape, dtype, main_device, is_padded=workload.is_padded)

    try:
        with (
            FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False) as mode,
            torch.no_grad(),
            as_if_real(),
        ):
            twin = twin_of(model, mode, known).eval()
            with_fused_experts(twin)
            with known, WholeFunctions(known), counter, AttentionKernels(workload.attention_kernel):
                counter.note(named_tensors(twin).values())
                dispatch_twin(twin, resolved_map, offload_buffers=offloads_buffers(plan), room_bytes=room)
                runs = list(runs_of(model, workload))
                for run in warming(plan, runs[0].run):
                    Forwards(twin, counter, run, given).run()
                counter.peaks = {}
                for each in runs:
                    Forwards(twin, counter, each.run, given).run()
                    forwards = list(counter.peaks)[-1:] if each.is_of_last_step else list(counter.peaks)
                    for name in forwards:
                        most = found.setdefault(name, {})
                        for device, size in counter.peaks[name].items():
                            most[device] = max(size, most.get(device, 0))
                    counter.peaks = {}
    finally:
        counter.forget()
    return found


def warming(plan: Plan, run: RecordedRun) -> Iterator[RecordedRun]:
    """A run before the first that counts, where blocks are offloaded: dispatch learns their order in it, as in the first of many
    prompts, and copies ahead from then on."""
    if plan.execution_map:
        yield replace(run, steps=min(1, run.steps))


def workload_input(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, is_padded: bool
) -> torch.Tensor:
    """An input of a workload's forward: words of a prompt, a mask with padding where the workload has some, zeros for what is measured."""
    if dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    made = torch.ones(shape, dtype=dtype, device=device)
    if is_padded and name.endswith("attention_mask") and shape[-1] > 1:
        made[..., 0] = 0
    return made
