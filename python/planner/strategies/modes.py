"""accelerate's modes for `plan()`: budgets of devices into those of a mode, and what the sequential strategy makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from planner.choices import Mode
from planner.devices.budgets import DeviceBudget
from planner.devices.keys import Budgets, DeviceKey
from planner.errors import InfeasibleError
from planner.model.constraints import is_usable
from planner.model.layout import BalanceFacts, Layout
from planner.names import named
from planner.settings.schema import Balanced, BalancedLow0, Sequential
from planner.strategies.balanced import balanced_budgets
from planner.strategies.sequential import Outcome, sequential


@dataclass(frozen=True, kw_only=True)
class ModeProblem:
    """One problem for accelerate's strategies.

    Args:
        layout: the model.
        device_budgets: devices in order of preference.
        strategy: which of them, with its options.
        mode: what may hold weights; see :class:`planner.settings.schema.Settings`.
    """

    layout: Layout
    device_budgets: tuple[DeviceBudget, ...]
    strategy: Sequential | Balanced | BalancedLow0
    mode: Mode

    def solve(self) -> Outcome:
        """What the strategy does.

        Raises:
            InfeasibleError: what may hold weights has no room for all.
        """
        try:
            return sequential(
                self.layout,
                self._budgets(self.device_budgets),
                fallback_allocation=self.strategy.fallback_allocation,
                reserve=self.strategy.reserve,
            )
        except InfeasibleError as error:
            has_disk = any(budget.device == "disk" for budget in self.device_budgets)
            if self.mode == "any" and has_disk:
                raise
            raise _excluded(error, self.mode) from error

    def minimum_bytes(self, outcome: Outcome) -> dict[DeviceKey, int | None]:
        """For each device that was left without a byte, the least budget, as the user says it, with which it gets one."""
        return outcome.minimums(
            lambda device, size: self._budgets(_with_budget(self.device_budgets, device, size))
        )

    @cached_property
    def _facts(self) -> BalanceFacts:
        return self.layout.balance_facts()

    @cached_property
    def _left_out(self) -> list[DeviceKey]:
        devices = [budget.device for budget in self.device_budgets]
        return [device for device in devices if not is_usable(device, devices, self.mode)]

    def _budgets(self, device_budgets: Sequence[DeviceBudget]) -> Budgets:
        budgets: Budgets = {budget.device: budget.capacity_bytes for budget in device_budgets}
        if isinstance(self.strategy, Balanced | BalancedLow0):
            low_zero = isinstance(self.strategy, BalancedLow0)
            budgets = balanced_budgets(self._facts, budgets, low_zero=low_zero)
        if self.mode != "any":
            budgets.update(dict.fromkeys(self._left_out, 0))
        # accelerate's strategies take a disk that is not named for one without end; here what is not named is not used.
        budgets.setdefault("disk", 0)
        return budgets


def _with_budget(
    device_budgets: Sequence[DeviceBudget], device: DeviceKey, size_bytes: int
) -> list[DeviceBudget]:
    return [
        replace(budget, budget_bytes=size_bytes) if budget.device == device else budget
        for budget in device_budgets
    ]


def _excluded(error: InfeasibleError, mode: Mode) -> InfeasibleError:
    """The same error where not a budget is exhausted, but the mode, or who named the devices, leaves some out."""
    why = {
        "gpu_only": "mode = gpu_only leaves out the cpu and disk",
        "no_disk": "mode = no_disk leaves out disk",
        "any": "disk is not among the devices, and what is not named is not used",
    }
    return InfeasibleError(
        f"{named(error.block)} fits nowhere: {why[mode]}; accelerate's strategies found no room elsewhere; "
        "strategy 'auto' may, and says how much more would be enough",
        **error.fields,
    )
