"""What running takes, as the search reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Final

from planner import _core
from planner.devices.budgets import DeviceBudget
from planner.errors import InvalidInputError
from planner.memory.demands import BlockDemand, Demands
from planner.model.blocks import Blocks
from planner.units import format_bytes

__all__ = ["CoreDemands", "block_demands", "core_demands", "is_beyond"]

CoreDemands = _core.Demands
"""Demands as the search reads them, made once for many questions."""

_NOTHING = BlockDemand()
_MOST_BYTES: Final = 1 << 53  # as of a model's weights


def block_demands(blocks: Blocks, demands: Demands) -> list[BlockDemand]:
    """By block of a model, in the order of execution, what it needs; a block of several parts needs what they need together."""
    if not demands.blocks:
        return [_NOTHING] * len(blocks.block_names)
    return [_of_parts([demands.blocks.get(name, _NOTHING) for name in names]) for names in blocks.block_names]


def _of_parts(parts: Sequence[BlockDemand]) -> BlockDemand:
    if len(parts) == 1:
        return parts[0]
    return BlockDemand(
        cache_bytes=sum(part.cache_bytes for part in parts),
        lasting_bytes=sum(part.lasting_bytes for part in parts),
        needs_bytes=max((part.needs_bytes for part in parts), default=0),
        resting_bytes=sum(part.resting_bytes for part in parts),
    )


def core_demands(
    blocks: Blocks,
    demands: Demands,
    *,
    share: Fraction = Fraction(0),
    beside_bytes: Sequence[int] = (),
    staying_bytes: Mapping[str, int] | None = None,
) -> CoreDemands:
    """Demands for the search.

    Args:
        blocks: the model.
        demands: what its blocks need.
        share: of all of it, what is kept beyond.
        beside_bytes: by device, what is given up where anything runs, beside what is shared.
        staying_bytes: by block, what of its own bytes is where it runs, even if it lies elsewhere; nothing is kept beyond it.

    Raises:
        InvalidInputError: more bytes than the search adds up.
    """
    whole_bytes = demands.shared_bytes + sum(
        demand.exec_bytes + demand.needs_bytes for demand in demands.blocks.values()
    )
    beside_most_bytes = max(beside_bytes, default=0)
    weights_bytes = -(-blocks.layout.columns.total_bits // 8)
    if weights_bytes + _more(whole_bytes, share) // 8 + beside_most_bytes >= _MOST_BYTES:
        beside = (
            f", and {format_bytes(beside_most_bytes)} are to be kept beside on one device (allocator_margin)"
            if beside_most_bytes
            else ""
        )
        raise InvalidInputError(
            f"the model takes {whole_bytes} bytes with this workload ({format_bytes(whole_bytes)}){beside}; plans add up less than "
            f"{_MOST_BYTES} ({format_bytes(_MOST_BYTES)}): say fewer rows, a shorter context or a smaller margin"
        )
    each, staying = block_demands(blocks, demands), staying_bytes or {}
    stays: list[int] = []
    if staying:
        stays = [8 * sum(staying.get(name, 0) for name in names) for names in blocks.block_names]
    return _core.Demands(
        exec_bits=[_more(demand.exec_bytes, share) for demand in each],
        peak_bits=[_more(demand.needs_bytes, share) for demand in each],
        stay_bits=stays,
        shared_bits=[_more(demands.shared_bytes, share) + 8 * size for size in beside_bytes],
    )


def is_beyond(blocks: Blocks, demands: Demands, device_budgets: Sequence[DeviceBudget]) -> bool:
    """Whether a model's weights and what running it takes are more than all of its devices have: then no search is needed.

    Cost: O(blocks).
    """
    runners = [budget.capacity_bytes for budget in device_budgets if budget.kind != "disk"]
    kept_bytes = sum(demand.exec_bytes for demand in demands.blocks.values())
    needs_bytes = max((demand.needs_bytes for demand in demands.blocks.values()), default=0)
    at_once_bytes = demands.shared_bytes + needs_bytes
    if kept_bytes + at_once_bytes > sum(runners) or at_once_bytes > max(runners, default=0):
        return True
    every_bytes = sum(budget.capacity_bytes for budget in device_budgets)
    return -(-blocks.layout.columns.total_bits // 8) + kept_bytes + at_once_bytes > every_bytes


def _more(size_bytes: int, share: Fraction) -> int:
    """In bits, with the share of it, rounded up to whole bytes."""
    return 8 * (
        -(-size_bytes * (share.numerator + share.denominator) // share.denominator) if share else size_bytes
    )
