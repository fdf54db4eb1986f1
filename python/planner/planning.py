"""The door to the strategies: a layout, budgets, and what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from planner import _core
from planner.devices import Budgets, DeviceKey, device_kind, read_budgets
from planner.dtypes import formula_bits, resolve_dtype, stored_bits
from planner.errors import InfeasibleError, InvalidInputError
from planner.plan import DeviceUsage, Reason
from planner.tree import ModuleTree
from planner.units import format_bytes

__all__ = ["BalanceFacts", "Layout", "Outcome", "Reserve", "clean", "plan_many", "sequential"]

Reserve = Literal["always", "if_offloaded"]
Dialect = Literal["accelerate", "transformers"]
_MOST_BITS = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceFacts:
    """Sizes in bytes from which the dialects make balanced budgets."""

    total_bytes: int | float
    first_no_split_bytes: int | float
    largest_no_split_bytes: int | float
    final_modules_bytes: int | float
    final_module_count: int
    largest_direct_bytes: int | float


class Layout:
    """A tree read with certain options: everything about a plan that does not depend on budgets.

    Args:
        tree: the flattened model.
        no_split: exact class names of modules that must stay on one device.
        dtype: what the weights will be loaded as; floating-point tensors are counted in it.
        special_dtypes: the same for single tensors, by name.
        dialect: whose rules are followed where accelerate and transformers differ.
        sizes: bits of single tensors by name, when the tree cannot know them (a quantizer does).
        tied: names that are one tensor or will be, group by group; None goes by object identity alone.
        uncounted: names among them that the dialect does not count.
        exempt: names, relative to a no-split module, of tensors that need no place when the module must be taken apart.

    Raises:
        InvalidTreeError: more bytes than can be planned.
        InvalidInputError: a dtype that torch does not have.

    Guarantee: immutable, safe to share between threads.

    Cost: O(modules + tensors).
    """

    __slots__ = ("_core", "tree")

    def __init__(
        self,
        tree: ModuleTree,
        *,
        no_split: Iterable[str] = (),
        dtype: Any = None,
        special_dtypes: Mapping[str, Any] | None = None,
        dialect: Dialect = "accelerate",
        sizes: Mapping[str, int] | None = None,
        tied: Sequence[Sequence[str]] | None = None,
        uncounted: Iterable[str] = (),
        exempt: Iterable[str] = (),
    ) -> None:
        special = {name: _element_bits(value) for name, value in (special_dtypes or {}).items()}
        self.tree = tree
        self._core = _core.Layout(
            tree.columns,
            no_split=list(no_split),
            dialect=dialect,
            cast=None if dtype is None else _element_bits(dtype),
            special=[(name, formula, stored) for name, (formula, stored) in special.items()],
            sizes=list((sizes or {}).items()),
            tied=None if tied is None else [list(group) for group in tied],
            uncounted=list(uncounted),
            exempt=list(exempt),
        )

    @property
    def has_ties(self) -> bool:
        """Whether any parameter has two names."""
        return self._core.tied_group_count > 0

    @property
    def has_no_split(self) -> bool:
        """Whether any module, the root aside, is of a no-split class."""
        return self._core.no_split_count > 0

    def tied_groups(self) -> list[list[str]]:
        """Names of each parameter that has several, sorted; groups in the order in which a second name is met."""
        return self._core.tied_groups()

    def stored_sizes(self, *, buffers_only: bool = False) -> dict[str, int | float]:
        """Stored bytes of every module and tensor by name, each tensor where it is met first; "" is the whole."""
        return {name: _bytes(bits) for name, bits in self._core.stored_sizes(buffers_only)}

    def balance_facts(self) -> BalanceFacts:
        """Sizes for balanced budgets."""
        total, first, largest, final, count, direct = self._core.balance_facts()
        return BalanceFacts(
            total_bytes=_bytes(total),
            first_no_split_bytes=_bytes(first),
            largest_no_split_bytes=_bytes(largest),
            final_modules_bytes=_bytes(final),
            final_module_count=count,
            largest_direct_bytes=_bytes(direct),
        )


class Outcome:
    """Result of a strategy for one set of budgets; names are made when asked for.

    Guarantee: immutable.
    """

    __slots__ = ("_budgets", "_core", "_keys")

    def __init__(self, core: _core.Outcome, keys: tuple[DeviceKey, ...], budgets: Budgets) -> None:
        self._core, self._keys, self._budgets = core, keys, budgets

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
        return {key: _bytes(used) for key, (_, used, _) in zip(self._keys, self._core.usage, strict=True)}

    @property
    def minimum_bytes(self) -> dict[DeviceKey, int | float]:
        """For each device that stayed empty: the bytes that would have let the blocked module in."""
        return {self._keys[device]: _bytes(bits) for device, bits in self._core.minimums}

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Every decision, in order."""
        return tuple(
            Reason(
                rule=rule,
                name=name,
                device=self._keys[device],
                needed_bytes=needed / 8,
                available_bytes=None if available is None else available / 8,
            )
            for rule, name, device, needed, available in self._core.reasons()
        )

    @property
    def has_offloaded(self) -> bool:
        """Whether anything lies on cpu or disk."""
        return self._core.has_offloaded

    def offloaded_buffer_bytes(self) -> int | float:
        """Bytes of buffers in modules on cpu or disk, as accelerate counts them."""
        return _bytes(self._core.offloaded_buffer_bits())


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
    result = layout._core.sequential(rows.devices, fallback_allocation, _if_offloaded(reserve))
    return rows.wrap(result)


def plan_many(
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
    results = layout._core.sequential_many(
        [row.devices for row in rows], fallback_allocation, _if_offloaded(reserve)
    )
    return [row.wrap(result) for row, result in zip(rows, results, strict=True)]


def clean(device_map: Mapping[str, Any]) -> dict[str, Any]:
    """One key for each module below which all keys have one device; values are compared with ``==``.

    Cost: O(keys · depth).
    """
    ids: dict[Any, int] = {}
    numbers = [ids.setdefault(value, len(ids)) for value in device_map.values()]
    values = list(ids)
    return {name: values[number] for name, number in _core.clean_keys(list(device_map), numbers)}


class _Rows:
    """Devices as the extension takes them, and the way back to their keys."""

    __slots__ = ("budgets", "devices", "keys")

    def __init__(self, budgets: Budgets) -> None:
        self.budgets = budgets
        self.keys = tuple(budgets) if "disk" in budgets else (*budgets, "disk")
        main = _main_devices(budgets)
        self.devices = [(device_kind(key), _budget_bits(budgets.get(key)), key in main) for key in self.keys]

    def wrap(self, result: _core.Outcome | _core.Exhausted) -> Outcome:
        if isinstance(result, _core.Outcome):
            return Outcome(result, self.keys, self.budgets)
        device = self.keys[result.device]
        shortfall = -(-result.shortfall_bits // 8)
        raise InfeasibleError(
            f"'{result.block}' fits nowhere: {device}, the last device, lacks {shortfall} bytes ({format_bytes(shortfall)}) "
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
    return None if budget_bytes is None else min(int(budget_bytes * 8), _MOST_BITS)


def _if_offloaded(reserve: str) -> bool:
    if reserve not in ("always", "if_offloaded"):
        raise InvalidInputError(
            f"reserve must be 'always' or 'if_offloaded', not {reserve!r}", reserve=reserve
        )
    return reserve == "if_offloaded"


def _element_bits(dtype: Any) -> tuple[int, int]:
    resolved = resolve_dtype(dtype)
    return formula_bits(resolved), stored_bits(resolved)


def _bytes(bits: int) -> int | float:
    """Bytes as accelerate counts them: whole unless a bit remains."""
    return bits / 8 if bits % 8 else bits // 8
