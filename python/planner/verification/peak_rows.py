"""Predicted peaks beside those that were found: what verifying and measuring have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from planner.choices import Phase
from planner.devices.keys import DeviceKey, main_device
from planner.names import device_of
from planner.plans.plan import Plan
from planner.units import format_bytes

__all__ = ["PeakRow", "execution_devices", "inputs_device", "peak_rows"]

_PHASES: Final[tuple[Phase, ...]] = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class PeakRow:
    """The most bytes on one device in one phase of a plan's workload.

    Args:
        device: its key.
        phase: "prefill", or "decode" for the largest of all steps.
        predicted_bytes: what the plan says.
        found_bytes: what was found.

    Example:
        >>> print(PeakRow(0, "prefill", 2048, 1024))
        0, prefill: predicted 2.00 KiB, found 1.00 KiB (50.0 % below)
    """

    device: DeviceKey
    phase: Phase
    predicted_bytes: int
    found_bytes: int

    @property
    def off(self) -> float:
        """By what share of the prediction the found bytes are above it; below 0, below."""
        return (self.found_bytes - self.predicted_bytes) / max(self.predicted_bytes, 1)

    def __str__(self) -> str:
        if self.found_bytes == self.predicted_bytes:
            held = "equal"
        else:
            beside_bytes = abs(self.found_bytes - self.predicted_bytes)
            share = 100 * abs(self.off)
            by = f"{share:.1f} %" if share >= 0.05 else format_bytes(beside_bytes)
            held = f"{by} {'above' if self.off > 0 else 'below'}"
        return (
            f"{self.device}, {self.phase}: predicted {format_bytes(self.predicted_bytes)}, "
            f"found {format_bytes(self.found_bytes)} ({held})"
        )


def peak_rows(plan: Plan, found: Mapping[str, Mapping[DeviceKey, int]]) -> tuple[PeakRow, ...]:
    """A plan's predictions beside what was found, for the devices that run something, phase by phase.

    Args:
        plan: a plan with a workload.
        found: by forward ("prefill", "decode", "decode 2", …) and device, bytes; of steps, the largest counts.
    """
    most: dict[str, dict[DeviceKey, int]] = {}
    for forward, by_device in found.items():
        here = most.setdefault(forward.partition(" ")[0], {})
        for device, size in by_device.items():
            here[device] = max(size, here.get(device, 0))
    running = set(execution_devices(plan))
    return tuple(
        PeakRow(device, phase, size, most[phase][device])
        for phase in _PHASES
        for device, size in plan.predicted_peaks.get(phase, {}).items()
        if device in running and device in most.get(phase, {})
    )


def execution_devices(plan: Plan) -> tuple[DeviceKey, ...]:
    """The devices that run a plan's blocks, in the order of execution."""
    blocks = () if plan.demands is None else plan.demands.blocks
    found: dict[DeviceKey, None] = {}
    for name in blocks:
        runs_on = device_of(name, plan.execution_map)
        device = device_of(name, plan.device_map) if runs_on is None else runs_on
        if device is not None:
            found[device] = None
    return tuple(found)


def inputs_device(plan: Plan) -> DeviceKey:
    """Where a plan counts the inputs, because dispatch takes them there: the first accelerator that holds anything, if something runs
    there; whichever block comes first."""
    running, main = execution_devices(plan), main_device(plan.device_map.values())
    return main if main in running or not running else running[0]
