"""The door to the strategies: a layout, budgets, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from planner import _core
from planner.choices import Reserve
from planner.devices.keys import Budgets, DeviceKey, device_kind, read_budgets
from planner.errors import InfeasibleError, InvalidInputError
from planner.model.layout import Layout, bits_to_bytes
from planner.names import named, require_map, require_texts
from planner.plans.parts import DeviceUsage, Reason
from planner.spelling import shown
from planner.strategies.minimum import MOST_BYTES, DeviceRow, least_budget_bytes
from planner.units import format_bytes

__all__ = ["Layout", "Outcome", "Reserve", "clean", "sequential", "sequential_many"]


class Outcome:
    """Result of a strategy for one set of budgets; names are made when asked for.

    Guarantee: immutable.
    """

    __slots__ = ("_budgets", "_core", "_keys", "_problem")

    def __init__(self, core: _core.Outcome, rows: _Rows, problem: _Problem) -> None:
        self._core, self._keys, self._budgets, self._problem = core, rows.keys, rows.budgets, problem

    def device_map(self, *, clean: bool = True) -> dict[str, DeviceKey]:
        """Names to devices, in the order of placement.

        Args:
            clean: one key for each module that lies on one device as a whole, instead of a key for each decision.
        """
        return {name: self._keys[device] for name, device in self._core.device_map(clean)}

    @property
    def usage(self) -> tuple[DeviceUsage, ...]:
        """Bytes per device, in the order in which they are filled."""
        return tuple(
            DeviceUsage(
                device=key,
                budget_bytes=self._budgets.get(key),
                used_bytes=-(-used // 8),
                reserved_bytes=-(-reserved // 8),
            )
            for key, (used, _, reserved) in zip(self._keys, self._core.usage, strict=True)
        )

    @property
    def formula_used_bytes(self) -> dict[DeviceKey, int | float]:
        """Bytes per device by the dialect's formula, with what was kept free on devices that were left."""
        return {
            key: bits_to_bytes(used) for key, (_, used, _) in zip(self._keys, self._core.usage, strict=True)
        }

    @property
    def empty_devices(self) -> tuple[DeviceKey, ...]:
        """Devices that were left for the next one without a byte of a tensor, in order."""
        return tuple(self._keys[device] for device in self._core.empty_devices)

    @property
    def minimum_bytes(self) -> dict[DeviceKey, int]:
        """For each empty device, the least budget with which it gets a byte, the others as they are; without those that no
        budget gives one."""
        found = self.minimums(lambda device, size: {**self._budgets, device: size})
        return {device: size for device, size in found.items() if size is not None}

    def minimums(self, budgets_of: Callable[[DeviceKey, int], Budgets]) -> dict[DeviceKey, int | None]:
        """For each empty device, the least size with which it gets a byte, or None where there is none.

        Args:
            budgets_of: all budgets, in canonical order, when a device is said to have so many bytes; see
                :func:`planner.strategies.minimum.least_budget_bytes` for what must hold of them.
        """

        def least(device: DeviceKey) -> int | None:
            return least_budget_bytes(
                lambda size: _Rows(budgets_of(device, size)).devices,
                self._keys.index(device),
                self._problem.probe,
            )

        return {device: least(device) for device in self.empty_devices}

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Every decision, in order."""
        return tuple(
            Reason(
                rule=reason.rule,
                name=reason.name,
                device=self._keys[reason.device],
                needed_bytes=-(-reason.needed_bits // 8),
                available_bytes=None if reason.available_bits is None else reason.available_bits // 8,
            )
            for reason in self._core.reasons()
        )

    @property
    def has_offloaded(self) -> bool:
        """Whether anything lies on cpu or disk."""
        return self._core.has_offloaded

    def offloaded_buffer_bytes(self) -> int | float:
        """Bytes of buffers in modules on cpu or disk, as accelerate counts them."""
        return bits_to_bytes(self._core.offloaded_buffer_bits())


def sequential(
    layout: Layout,
    max_memory: Mapping[Any, Any],
    *,
    fallback_allocation: bool = False,
    reserve: Reserve = "always",
) -> Outcome:
    """Plans with accelerate's strategy, repaired.

    Args:
        layout: the model.
        max_memory: device to budget in bytes; disk is without limit unless it is named.
        fallback_allocation: place a smaller module where the next one would leave a device empty.
        reserve: keep room for the largest layer on the main devices "always", or only "if_offloaded": when a first pass
            without it had to offload something.

    Returns:
        The outcome.

    Raises:
        InvalidDevicesError, InvalidByteSizeError: budgets that make no sense.
        InfeasibleError: a disk budget was named and is exhausted. Fields: ``block``, ``device``, ``shortfall_bytes``,
            ``best_partial``.

    Guarantee: every tensor under every name has a device, tied tensors share one, no device exceeds its budget in stored
        bytes. Not optimal: it never goes back to an earlier device.

    Cost: O((modules + devices) · log modules); the GIL is released.

    Source: ``infer_auto_device_map``, accelerate 1.15, with the repairs listed in ARCHITECTURE.md; the two passes were
        proposed in the discussion of huggingface/accelerate#3066.
    """
    rows = _Rows(read_budgets(max_memory))
    problem = _Problem(layout, fallback_allocation, _known_reserve(reserve))
    result = layout.columns.sequential(rows.devices, problem.fallback, problem.reserve)
    return rows.wrap(result, problem)


def sequential_many(
    layout: Layout,
    budgets: Iterable[Mapping[Any, Any]],
    *,
    fallback_allocation: bool = False,
    reserve: Reserve = "always",
) -> list[Outcome]:
    """Plans as :func:`sequential` does for each of many budgets, on all cores, in the order given.

    Raises:
        As :func:`sequential`, for the first row that fails.
    """
    rows = [_Rows(read_budgets(row)) for row in budgets]
    problem = _Problem(layout, fallback_allocation, _known_reserve(reserve))
    results = layout.columns.sequential_many([row.devices for row in rows], problem.fallback, problem.reserve)
    return [row.wrap(result, problem) for row, result in zip(rows, results, strict=True)]


def clean(device_map: Mapping[str, Any]) -> dict[str, Any]:
    """One key for each module below which all keys have one device; values are compared with ``==``.

    Raises:
        InvalidInputError: no mapping.
        InvalidConstraintError: a key that is no string, or no text. Fields: ``names``.

    Cost: O(keys · depth).
    """
    require_map(device_map)
    require_texts(device_map)
    ids: dict[Any, int] = {}
    numbers = [ids.setdefault(value, len(ids)) for value in device_map.values()]
    values = list(ids)
    return {name: values[number] for name, number in _core.clean_keys(list(device_map), numbers)}


class _Problem(NamedTuple):
    """What is planned, and how; all but the devices."""

    layout: Layout
    fallback: bool
    reserve: Reserve

    def probe(self, rows: list[DeviceRow], device: int) -> tuple[bool, int | None, list[int | None]]:
        return self.layout.columns.probe(rows, self.fallback, self.reserve, device)


class _Rows:
    """Devices as the extension takes them, and the way back to their keys."""

    __slots__ = ("budgets", "devices", "keys")

    def __init__(self, budgets: Budgets) -> None:
        self.budgets = budgets
        self.keys = tuple(budgets) if "disk" in budgets else (*budgets, "disk")
        main = _main_devices(budgets)
        self.devices: list[DeviceRow] = [
            (device_kind(key), _budget_bits(budgets.get(key)), key in main) for key in self.keys
        ]

    def wrap(self, result: _core.Outcome | _core.Exhausted, problem: _Problem) -> Outcome:
        if isinstance(result, _core.Outcome):
            return Outcome(result, self, problem)
        device = self.keys[result.device]
        shortfall = -(-result.shortfall_bits // 8)
        raise InfeasibleError(
            f"{named(result.block)} fits nowhere: {device}, the last device, lacks {shortfall} bytes ({format_bytes(shortfall)}) "
            f"of its budget of {self.budgets.get(device)} bytes; raise that budget, or leave out 'disk' from max_memory "
            "to let it grow without limit",
            block=result.block,
            device=device,
            shortfall_bytes=shortfall,
            best_partial={name: self.keys[index] for name, index in result.placed},
        )


def _main_devices(budgets: Budgets) -> tuple[DeviceKey, ...]:
    """Devices that keep room for an offloaded layer: where it runs, and where it passes through."""
    if "mps" in budgets:
        return ("mps",)
    accelerators = [device for device in budgets if device_kind(device) == "accelerator"]
    return (*accelerators[:1], "cpu")


def _budget_bits(budget_bytes: int | float | None) -> int | None:
    return None if budget_bytes is None else int(min(budget_bytes, MOST_BYTES) * 8)


def _known_reserve(reserve: Reserve) -> Reserve:
    if reserve not in ("always", "if_offloaded"):
        raise InvalidInputError(
            f"reserve must be 'always' or 'if_offloaded', not {shown(reserve)}", reserve=reserve
        )
    return reserve
