"""accelerate's modes for `plan()`: rooms into the budgets of a mode, and what the sequential strategy makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from planner.devices.keys import Budgets, DeviceKey
from planner.devices.rooms import Room
from planner.errors import InfeasibleError
from planner.model.blocks import is_usable
from planner.model.layout import BalanceFacts, Layout
from planner.names import named
from planner.settings.schema import Balanced, BalancedLow0, Sequential
from planner.strategies.balanced import balanced_budgets
from planner.strategies.sequential import Outcome, sequential

__all__ = ["ModeProblem"]


@dataclass(frozen=True, kw_only=True)
class ModeProblem:
    """One problem for accelerate's strategies.

    Args:
        layout: the model.
        rooms: devices in order of preference.
        strategy: which of them, with its options.
        mode: what may hold weights; see :class:`planner.settings.schema.Settings`.
    """

    layout: Layout
    rooms: tuple[Room, ...]
    strategy: Sequential | Balanced | BalancedLow0
    mode: str

    def solve(self) -> Outcome:
        """What the strategy does.

        Raises:
            InfeasibleError: what may hold weights has no room for all.
        """
        try:
            return sequential(
                self.layout,
                self._budgets(self.rooms),
                fallback_allocation=self.strategy.fallback_allocation,
                reserve=self.strategy.reserve,
            )
        except InfeasibleError as error:
            if self.mode == "any":
                raise
            raise _excluded(error, self.mode) from error

    def minimum_bytes(self, outcome: Outcome) -> dict[DeviceKey, int | None]:
        """For each device that was left without a byte, the least budget, as the user says it, with which it gets one."""
        return outcome.minimums(lambda device, size: self._budgets(_with_budget(self.rooms, device, size)))

    @cached_property
    def _facts(self) -> BalanceFacts:
        return self.layout.balance_facts()

    @cached_property
    def _left_out(self) -> list[DeviceKey]:
        devices = [room.device for room in self.rooms]
        return [device for device in devices if not is_usable(device, devices, self.mode)]

    def _budgets(self, rooms: Sequence[Room]) -> Budgets:
        budgets: Budgets = {room.device: room.capacity_bytes for room in rooms}
        if isinstance(self.strategy, Balanced | BalancedLow0):
            low_zero = isinstance(self.strategy, BalancedLow0)
            budgets = balanced_budgets(self._facts, budgets, low_zero=low_zero)
        if self.mode != "any":
            budgets.update(dict.fromkeys(self._left_out, 0))
            budgets.setdefault("disk", 0)
        return budgets


def _with_budget(rooms: Sequence[Room], device: DeviceKey, size_bytes: int) -> list[Room]:
    return [replace(room, budget_bytes=size_bytes) if room.device == device else room for room in rooms]


def _excluded(error: InfeasibleError, mode: str) -> InfeasibleError:
    """The same error where not a budget is exhausted, but the mode leaves out devices."""
    left_out = "the cpu and disk" if mode == "gpu_only" else "disk"
    return InfeasibleError(
        f"{named(error.block)} fits nowhere: mode = {mode} leaves out {left_out}, and accelerate's strategies found no room "
        "elsewhere; strategy 'auto' may, and says how much more would be enough",
        **error.fields,
    )
