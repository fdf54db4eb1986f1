"""The `auto` strategy on units: rows for the search, and its answer in names and bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from planner import _core
from planner.choices import DeviceKind, ExecuteOffloaded, Fill, Mode
from planner.devices.budgets import DeviceBudget
from planner.devices.keys import DeviceKey, device_kind, ordered
from planner.errors import InfeasibleError, InvalidConstraintError, InvalidDevicesError, InvalidTreeError
from planner.memory.demands import Demands
from planner.model.blocks import Blocks
from planner.plans.parts import Certificate, DeviceUsage, Reason, Shortfall
from planner.plans.wording import infeasible_message
from planner.strategies.decisions import told
from planner.strategies.minimum import MOST_BYTES
from planner.strategies.running import core_demands
from planner.strategies.staying import StayingBuffers
from planner.strategies.taken import no_room_for_taken
from planner.units import format_bytes

_MOST_DEVICES = 64  # a set of devices is a word of the machine
_MOST_MODEL_BYTES = 1 << 53  # the search adds up to 256 sizes of a model


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoAnswer:
    """What the search found, in names and bytes."""

    device_map: Mapping[str, DeviceKey]
    execution_map: Mapping[str, DeviceKey]
    usage: tuple[DeviceUsage, ...]
    certificate: Certificate
    reasons: Callable[[], tuple[Reason, ...]]
    shortfall: Callable[[], Shortfall | None]
    cost_bytes: tuple[int, int]  # offloaded, on disk
    map_is_enough: bool
    has_oversized: bool
    displaced: Callable[[], tuple[str, ...]]  # blocks that are offloaded


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoSearch:
    """One problem for the search.

    Args:
        blocks: the model.
        device_budgets: devices in order of preference.
        masks: by unit that may not lie everywhere, the set of devices where it may.
        fill, search_steps, mode, execute_offloaded, staging_blocks: see :class:`planner.settings.schema.Settings`.
        staying: buffers that stay where offloaded blocks run.
        demands: what running the blocks takes beside their weights, these buffers included, its devices in the order of
            ``device_budgets``. Without them weights alone are planned, and then with the buffers if blocks that have any are
            offloaded.

    Raises:
        InvalidDevicesError: more devices than a machine word has bits. Fields: ``device``.
        InvalidTreeError: a model of 2**53 bytes or more.
    """

    blocks: Blocks
    device_budgets: tuple[DeviceBudget, ...]
    masks: tuple[tuple[int, int], ...]
    fill: Fill
    search_steps: int
    mode: Mode
    execute_offloaded: ExecuteOffloaded
    staging_blocks: int
    staying: StayingBuffers
    demands: _core.Demands | None = None

    def __post_init__(self) -> None:
        if len(self.device_budgets) > _MOST_DEVICES:
            raise InvalidDevicesError(
                f"{len(self.device_budgets)} devices have budgets; strategy 'auto' takes at most {_MOST_DEVICES}: leave some out, or "
                "use strategy 'sequential' or 'balanced'",
                device=self.device_budgets[_MOST_DEVICES].device,
            )
        total_bytes = -(-self.blocks.layout.columns.total_bits // 8)
        if total_bytes >= _MOST_MODEL_BYTES:
            raise InvalidTreeError(
                f"the model has {total_bytes} bytes ({format_bytes(total_bytes)}); strategy 'auto' plans models of less than "
                f"{_MOST_MODEL_BYTES} ({format_bytes(_MOST_MODEL_BYTES)}): use strategy 'sequential' or 'balanced'",
                name="",
            )

    def solve(self, enough_bytes: Mapping[DeviceKey, int] | None = None) -> AutoAnswer:
        """The best plan that the search finds.

        Args:
            enough_bytes: by device, what alone would be enough as far as is known.

        Raises:
            InfeasibleError: none within budgets, constraints and mode.

        Cost: O(units) where blocks fit in order; else at most ``search_steps`` steps more, and twice that where buffers of
            offloaded blocks stay. The GIL is released.
        """
        result = self.blocks.columns.solve(self.row(), list(self.masks), self.options(), self.demands)
        return self.read(result, enough_bytes)

    def with_buffers(self) -> AutoSearch:
        """The problem with demands of nothing but the buffers that stay."""
        staying_bytes = self.staying.block_bytes
        return replace(
            self, demands=core_demands(self.blocks, Demands(blocks={}), staying_bytes=staying_bytes)
        )

    def fits(self) -> bool | None:
        """Whether there is a plan, found sooner than one; None where the search ended before that was known."""
        if any(budget.lacking_bytes for budget in self.device_budgets):
            return False
        return self.blocks.columns.fits(self.row(), list(self.masks), self.options(), self.demands)

    def row(
        self, least_bits: int = 0
    ) -> tuple[list[tuple[DeviceKind, int | None, int | None]], list[int], list[int]]:
        """Devices, pools, and the order in which a loader looks for its main device, as the extension takes them.

        Args:
            least_bits: capacity of devices that have none. The search passes those over; a single bit asks what more room on
                them would change.
        """
        pools = list(dict.fromkeys(budget.pool for budget in self.device_budgets if budget.pool))
        if self.mode == "gpu_only" and not self._has_accelerator_room:
            least_bits = 1  # a full accelerator is still one: the cpu does not take its place
        sizes = [
            max(
                least_bits,
                *(_bits(budget) for budget in self.device_budgets if budget.pool == pool),
            )
            for pool in pools
        ]
        devices: list[tuple[DeviceKind, int | None, int | None]] = [
            (
                budget.kind,
                max(_bits(budget), least_bits),
                pools.index(budget.pool) if budget.pool else None,
            )
            for budget in self.device_budgets
        ]
        keys = [budget.device for budget in self.device_budgets]
        main_order = [
            keys.index(device)
            for device in ordered(dict.fromkeys(keys, 0))
            if device_kind(device) == "accelerator"
        ]
        return devices, sizes, main_order

    def options(self) -> _core.SearchOptions:
        """The search's options as the extension takes them."""
        return _core.SearchOptions(
            fill=self.fill,
            search_steps=self.search_steps,
            mode=self.mode,
            execute_offloaded=self.execute_offloaded,
            staging_blocks=self.staging_blocks,
        )

    def read(
        self, result: _core.AutoPlan | _core.AutoFailure, enough_bytes: Mapping[DeviceKey, int] | None = None
    ) -> AutoAnswer:
        """The answer to this problem; see :meth:`solve`. Raises InfeasibleError."""
        error = no_room_for_taken(self.device_budgets)
        if error is not None:
            raise error
        if isinstance(result, _core.AutoFailure):
            if self.demands is None and self.staying.block_bytes:
                return self.with_buffers().solve(enough_bytes)  # it lacks room for these, too
            raise self._infeasible(result, enough_bytes or {})
        keys = [budget.device for budget in self.device_budgets]
        usage = tuple(
            DeviceUsage(
                device=budget.device,
                budget_bytes=budget.capacity_bytes,
                used_bytes=-(-used // 8),
                reserved_bytes=-(-reserved // 8),
            )
            for budget, (used, reserved) in zip(self.device_budgets, result.usage, strict=True)
        )
        execution_map = result.execution_map(keys)
        if self.demands is None and self.staying.of(self._displaced(result), execution_map):
            return self.with_buffers().solve(enough_bytes)
        return AutoAnswer(
            device_map=result.device_map(keys),
            execution_map=execution_map,
            usage=usage,
            certificate=_certificate(result),
            cost_bytes=self._cost(usage),
            map_is_enough=result.map_is_enough,
            has_oversized=any(name is not None for name in result.oversized),
            reasons=partial(self._reasons, result),
            shortfall=partial(self._shortfall, result),
            displaced=partial(self._displaced, result),
        )

    @property
    def _has_accelerator_room(self) -> bool:
        return any(budget.kind == "accelerator" and budget.capacity_bytes for budget in self.device_budgets)

    def _slow(self) -> frozenset[str]:
        """Kinds of devices where what lies is offloaded: the cpu only beside an accelerator."""
        return frozenset({"cpu", "disk"} if self._has_accelerator_room else {"disk"})

    def _cost(self, usage: Sequence[DeviceUsage]) -> tuple[int, int]:
        slow = self._slow()
        offloaded = sum(each.used_bytes for each in usage if device_kind(each.device) in slow)
        return offloaded, sum(each.used_bytes for each in usage if each.device == "disk")

    def _offloaded_units(self, result: _core.AutoPlan) -> list[int]:
        """Units that are offloaded, in execution order."""
        slow = self._slow()
        is_slow = [budget.kind in slow for budget in self.device_budgets]
        return [unit for unit, home in enumerate(result.home) if is_slow[home]]

    def _displaced(self, result: _core.AutoPlan) -> tuple[str, ...]:
        return tuple(name for unit in self._offloaded_units(result) for name in self.blocks.unit_names[unit])

    def _reasons(self, result: _core.AutoPlan) -> tuple[Reason, ...]:
        return told(
            self.blocks,
            self.device_budgets,
            homes=result.home,
            oversized=result.oversized,
            taken_bits=[used + kept for used, kept in result.usage],
            offloaded=self._offloaded_units(result),
        )

    def _shortfall(self, result: _core.AutoPlan) -> Shortfall | None:
        sizes = self.blocks.unit_bytes
        offloaded = self._offloaded_units(result)
        if not offloaded:
            return None
        largest = max(offloaded, key=lambda unit: (sizes[unit], -unit))
        return Shortfall(name=self.blocks.unit_name(largest), more_bytes=self.lacking_bytes())

    def lacking_bytes(self) -> dict[DeviceKey, int]:
        """By device, the least that would keep everything on the accelerators."""
        return self._by_device(
            self.blocks.columns.shortfall(self.row(1), list(self.masks), self.options(), self.demands)
        )

    def _by_device(self, more_bits: Sequence[int | None]) -> dict[DeviceKey, int]:
        pairs = zip(self.device_budgets, more_bits, strict=True)
        found = {
            budget.device: budget.more_bytes(-(-bits // 8)) for budget, bits in pairs if bits is not None
        }
        return {device: size for device, size in found.items() if size is not None}

    def _infeasible(
        self, failure: _core.AutoFailure, enough_bytes: Mapping[DeviceKey, int]
    ) -> InfeasibleError:
        keys = [budget.device for budget in self.device_budgets]
        if any(budget.capacity_bytes == 0 for budget in self.device_budgets):
            again = self.blocks.columns.solve(self.row(1), list(self.masks), self.options(), self.demands)
            failure = again if isinstance(again, _core.AutoFailure) else failure
        more = _least_of(self._by_device(failure.more_bits), enough_bytes)
        block = self.blocks.unit_name(failure.unit) if len(self.blocks.columns) else ""
        placed = {
            self.blocks.unit_name(unit): keys[home]
            for unit, home in enumerate(failure.best_partial)
            if home is not None
        }
        size = self.blocks.unit_bytes[failure.unit] if len(self.blocks.columns) else 0
        fields: dict[str, Any] = {"more_bytes": more, "best_partial": placed, "is_proven": failure.proven}
        return InfeasibleError(
            infeasible_message(
                block, size, self.mode, more, failure.proven, is_all_disk=set(keys) == {"disk"}
            ),
            block=block,
            device=None,
            shortfall_bytes=min(more.values(), default=None),
            **fields,
        )


def solve_in_parts(
    names: Sequence[str], cut: Callable[[Sequence[str]], AutoSearch]
) -> tuple[AutoSearch, AutoAnswer]:
    """The best answer of three cuts: all blocks whole, those in parts that would be offloaded, and all in parts.

    Args:
        names: all blocks.
        cut: the problem with some of them in parts.

    Returns:
        The answer that offloads least, of equal ones one whose device map is enough alone, then the coarsest, and its problem. Its certificate is about every plan
        that has all blocks whole, or each part by itself.

    Raises:
        InfeasibleError: no plan of either cut.
        InvalidConstraintError: a part that may lie nowhere.
    """
    parts = cut(names)
    try:
        whole = cut(())
        answer = whole.solve()
    except (InfeasibleError, InvalidConstraintError) as error:
        # Constraints that contradict each other in a whole block may be about different parts of it.
        is_proven = isinstance(error, InvalidConstraintError) or error.is_proven
        try:
            found = parts.solve(error.more_bytes if isinstance(error, InfeasibleError) else None)
        except InfeasibleError as finer_error:
            raise (finer_error if is_proven else error) from None
        bound_bytes = found.certificate.lower_bound_bytes if is_proven else 0
        return parts, certified(found, bound_bytes, found.certificate.steps)
    displaced = answer.displaced()
    if not displaced:
        return whole, certified(answer, 0, answer.certificate.steps)
    best, steps = (whole, answer), answer.certificate.steps
    bound_bytes = 0
    for search in (cut(displaced), parts):
        try:
            finer = search.solve()
        except InfeasibleError as error:
            # Parts that fit a card are streamed to it, where a block above every card runs on the cpu and needs no room.
            bound_bytes = answer.certificate.lower_bound_bytes if error.is_proven else 0
            continue
        # In the end the bound of all parts: they can do what blocks can.
        bound_bytes = finer.certificate.lower_bound_bytes
        steps += finer.certificate.steps
        if _rank(finer) < _rank(best[1]):
            best = (search, finer)
    if answer.has_oversized:
        bound_bytes = min(bound_bytes, answer.certificate.lower_bound_bytes)
    found = replace(best[1], shortfall=partial(_finer_shortfall, best[1], parts))
    return best[0], certified(found, bound_bytes, steps)


def _rank(answer: AutoAnswer) -> tuple[tuple[int, int], bool]:
    return answer.cost_bytes, not answer.map_is_enough


def _finer_shortfall(answer: AutoAnswer, parts: AutoSearch) -> Shortfall | None:
    """That of an answer, or less where less is enough for all blocks in parts."""
    coarse = answer.shortfall()
    return coarse and replace(coarse, more_bytes=_least_of(parts.lacking_bytes(), coarse.more_bytes))


def _least_of(one: Mapping[DeviceKey, int], other: Mapping[DeviceKey, int]) -> dict[DeviceKey, int]:
    """The less of two amounts for each device that has either."""
    return {
        device: min(each[device] for each in (one, other) if device in each)
        for device in dict.fromkeys((*one, *other))
    }


def certified(answer: AutoAnswer, bound_bytes: int, steps: int) -> AutoAnswer:
    """The answer with what is known of all cuts: of returns nothing, for a finer cut may have fewer."""
    gap_bytes = answer.cost_bytes[0] - bound_bytes
    certificate = replace(
        answer.certificate,
        proven=gap_bytes == 0,
        lower_bound_bytes=bound_bytes,
        gap_bytes=gap_bytes,
        returns_lower_bound=0,
        steps=steps,
    )
    return replace(answer, certificate=certificate)


def _bits(budget: DeviceBudget) -> int:
    return min(budget.capacity_bytes, MOST_BYTES) * 8


def _certificate(result: _core.AutoPlan) -> Certificate:
    known = result.certificate
    return Certificate(
        proven=known.proven,
        lower_bound_bytes=known.lower_bound_bits // 8,
        gap_bytes=-(-known.gap_bits // 8),
        returns=known.returns,
        returns_lower_bound=known.returns_lower_bound,
        steps=known.steps,
        stage=known.stage,
    )
