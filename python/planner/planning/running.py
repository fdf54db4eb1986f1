"""Planning with a workload: rooms for what runs, and the bytes that a plan says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from planner.choices import Phase
from planner.devices.budgets import DeviceBudget
from planner.devices.keys import DeviceKey
from planner.errors import InfeasibleError
from planner.memory.demands import Demands
from planner.planning.margins import margin_bytes
from planner.plans.parts import DevicePlan, PredictedPeaks
from planner.plans.running import Running, running_by_device
from planner.strategies.auto import AutoAnswer, AutoSearch
from planner.units import format_bytes

_MOST_ROUNDS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRooms:
    """What a workload asks for on devices.

    Args:
        by_phase: what blocks need in each phase.
        margin: what the allocator may take beyond, as the settings say it.
    """

    by_phase: Mapping[Phase, Demands]
    margin: int | str | None

    @property
    def most(self) -> Demands:
        """What no phase goes beyond."""
        return Demands.most_of(self.by_phase.values())

    def of(self, answer: AutoAnswer) -> dict[DeviceKey, Running]:
        """What running takes where an answer runs blocks."""
        return running_by_device(self.most, answer.device_map, answer.execution_map)

    def needed_bytes(self, device: DeviceKey, running: Running) -> int:
        """The same with the margin."""
        both = running.cache_bytes + running.activation_bytes
        return both + margin_bytes(device, both, self.margin)

    def peaks(self, devices: tuple[DevicePlan, ...], answer: AutoAnswer) -> PredictedPeaks:
        """By phase and device that runs anything, the most at one time."""
        found: dict[Phase, dict[DeviceKey, int]] = {}
        for phase, demands in self.by_phase.items():
            running = running_by_device(demands, answer.device_map, answer.execution_map)
            found[phase] = {
                device.id: device.used_bytes
                + device.reserved_bytes
                + running[device.id].cache_bytes
                + running[device.id].activation_bytes
                for device in devices
                if device.id in running
            }
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningSearch(AutoSearch):
    """A search whose devices also have room for what runs there.

    Args:
        rooms: what that is.
    """

    rooms: RunningRooms

    def solve(self, enough_bytes: Mapping[DeviceKey, int] | None = None) -> AutoAnswer:
        """The best answer that is found. Each round keeps as much free on a device as what ran there in any round before needs,
        so what it ends with holds.

        Raises:
            InfeasibleError: none was found; it is not proven that there is none where weights alone would fit.
        """
        kept_bytes: dict[DeviceKey, int] = {}
        bound_bytes: int | None = None
        steps = 0
        for _ in range(_MOST_ROUNDS):
            answer = self._narrower(kept_bytes, enough_bytes)
            steps += answer.certificate.steps
            if bound_bytes is None:
                bound_bytes = answer.certificate.lower_bound_bytes
            lacking = {
                device: needed_bytes
                for device, running in self.rooms.of(answer).items()
                if (needed_bytes := self.rooms.needed_bytes(device, running)) > kept_bytes.get(device, 0)
            }
            if not lacking:
                # Of the devices as they are: one that is kept free for what runs is an accelerator all the same.
                return _bounded(replace(answer, cost_bytes=self._cost(answer.usage)), bound_bytes, steps)
            kept_bytes.update(lacking)
        raise InfeasibleError(
            "no plan was found that leaves room for what runs: each that was tried needs more on some device; a smaller context_length "
            "or batch_size needs less",
            block="",
            device=None,
            shortfall_bytes=None,
            more_bytes=None,
            is_proven=False,
        )

    def _narrower(
        self, kept_bytes: Mapping[DeviceKey, int], enough_bytes: Mapping[DeviceKey, int] | None
    ) -> AutoAnswer:
        """The best answer for weights alone, with something kept free."""
        names = [name for name in AutoSearch.__dataclass_fields__ if name != "device_budgets"]
        budgets = tuple(
            _with_less(budget, kept_bytes.get(budget.device, 0)) for budget in self.device_budgets
        )
        search = AutoSearch(device_budgets=budgets, **{name: getattr(self, name) for name in names})
        try:
            return search.solve(enough_bytes)
        except InfeasibleError as error:
            if not kept_bytes:
                raise
            kept = ", ".join(f"{format_bytes(size)} on {device}" for device, size in kept_bytes.items())
            raise InfeasibleError(
                f"{error.message}; the workload needs {kept}", **{**error.fields, "is_proven": False}
            ) from error


def _bounded(answer: AutoAnswer, bound_bytes: int, steps: int) -> AutoAnswer:
    """The answer with what is known of all plans: none offloads less than one for weights alone."""
    gap_bytes = answer.cost_bytes[0] - bound_bytes
    certificate = replace(
        answer.certificate,
        proven=gap_bytes == 0,
        lower_bound_bytes=bound_bytes,
        gap_bytes=gap_bytes,
        returns_lower_bound=0,
        steps=steps,
    )
    # How much more room would avoid offloading is known for weights alone, which is not enough to be said.
    return replace(answer, certificate=certificate, shortfall=lambda: None)


def _with_less(budget: DeviceBudget, kept_bytes: int) -> DeviceBudget:
    return replace(budget, headroom=budget.headroom_bytes + kept_bytes) if kept_bytes else budget


def running_device(device: DevicePlan, running: Running | None, rooms: RunningRooms) -> DevicePlan:
    """A device of a plan with what runs there."""
    if running is None:
        return device
    both = running.cache_bytes + running.activation_bytes
    margin = margin_bytes(device.id, both, rooms.margin)
    free_bytes = None if device.free_bytes is None else max(0, device.free_bytes - both - margin)
    return replace(
        device,
        cache_bytes=running.cache_bytes,
        activation_bytes=running.activation_bytes,
        margin_bytes=margin,
        free_bytes=free_bytes,
        peak_bytes=device.used_bytes + device.reserved_bytes + both,
    )
