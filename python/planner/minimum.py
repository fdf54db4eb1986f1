"""The least budget with which a device gets anything, found by trying one budget of each kind that there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["MOST_BYTES", "DeviceRow", "Probe", "least_budget_bytes"]

MOST_BYTES = 1 << 57  # larger budgets count as this much

# Kind, budget in bits or none, keeps room for the largest layer: a device as the extension takes it.
DeviceRow = tuple[str, int | None, bool]
# Whether the device of that index gets a byte, and by how many bits its budget may rise and those of the others may fall
# until the strategy would decide anything otherwise; None where nothing ever turns.
Probe = Callable[[list[DeviceRow], int], tuple[bool, int | None, Sequence[int | None]]]


def least_budget_bytes(rows_of: Callable[[int], list[DeviceRow]], device: int, probe: Probe) -> int | None:
    """The least budget of a device with which it gets a byte, or None where no budget does.

    Args:
        rows_of: the devices, when that one's budget is so many bytes. As it grows from 1 on, the room on that device must not
            shrink, and that on the others must not grow.
        device: its index.
        probe: what the strategy does with such devices.

    Guarantee: exact, whether or not a larger budget always does what a smaller one does: every decision turns at one
        budget, and between two of them only one has to be tried.

    Cost: one run of the strategy for each budget at which a decision turns before the answer; in most models fewer than ten.
    """
    size_bytes = 0
    while True:
        rows = rows_of(size_bytes)
        gets_any, rise_bits, fall_bits = probe(rows, device)
        if gets_any:
            return size_bytes

        def is_same(size: int, rows: list[DeviceRow] = rows, rise: int | None = rise_bits) -> bool:
            bounds = zip(rows, rows_of(size), fall_bits, strict=True)  # noqa: B023 (used before the next round)
            return all(
                _may_rise(before, now, rise) if index == device else _may_fall(before, now, fall)
                for index, ((_, before, _), (_, now, _), fall) in enumerate(bounds)
            )

        other = _first_other(size_bytes, is_same)
        if other is None:
            return None
        size_bytes = other


def _may_rise(before_bits: int | None, now_bits: int | None, rise_bits: int | None) -> bool:
    if before_bits is None or now_bits is None or rise_bits is None:
        return True
    return now_bits < before_bits + rise_bits


def _may_fall(before_bits: int | None, now_bits: int | None, fall_bits: int | None) -> bool:
    if before_bits is None or now_bits is None:
        return before_bits == now_bits
    return now_bits <= before_bits and (fall_bits is None or before_bits - fall_bits <= now_bits)


def _first_other(size_bytes: int, is_same: Callable[[int], bool]) -> int | None:
    """The first size above one that is not the same; sizes that are follow each other."""
    step = 1
    while is_same(size_bytes + step):
        if size_bytes + step > MOST_BYTES:
            return None
        step *= 2
    same, other = size_bytes + step // 2, size_bytes + step
    while other - same > 1:
        middle = (same + other) // 2
        same, other = (middle, other) if is_same(middle) else (same, middle)
    return other
