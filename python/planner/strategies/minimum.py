"""The least budget with which a device gets anything, found by trying one budget of each kind that there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.choices import DeviceKind

MOST_BYTES = 1 << 57  # larger budgets count as this much

# Kind, budget in bits or none, keeps room for the largest layer: a device as the extension takes it.
DeviceRow = tuple[DeviceKind, int | None, bool]
# Whether the device of that index gets a byte, and by how many bits its budget may rise and those of the others may fall
# until the strategy would decide anything otherwise; None where nothing ever turns.
_Probe = Callable[[list[DeviceRow], int], tuple[bool, int | None, Sequence[int | None]]]


def least_budget_bytes(rows_of: Callable[[int], list[DeviceRow]], device: int, probe: _Probe) -> int | None:
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

        def is_same(
            size: int,
            rows: list[DeviceRow] = rows,
            rise: int | None = rise_bits,
            falls: Sequence[int | None] = fall_bits,
        ) -> bool:
            bounds = zip(rows, rows_of(size), falls, strict=True)
            return all(
                _may_rise(before, now, rise) if index == device else _may_fall(before, now, fall)
                for index, ((_, before, _), (_, now, _), fall) in enumerate(bounds)
            )

        if is_same(2 * MOST_BYTES):
            return None
        guess_bytes = _enough_bytes(lambda size: rows_of(size)[device][1], size_bytes, rise_bits)
        size_bytes = _first_other(size_bytes, 2 * MOST_BYTES, guess_bytes, is_same)


def _enough_bytes(bits_of: Callable[[int], int | None], size_bytes: int, rise_bits: int | None) -> int:
    """About the size with which a device has so many bits more, where all above some size counts, or a share of it."""
    more_bytes = max(1, -(-(rise_bits or 0) // 8))
    before_bits = bits_of(size_bytes) or 0
    near_bytes = size_bytes + more_bytes
    while (near_bits := bits_of(near_bytes) or 0) <= before_bits and near_bytes < MOST_BYTES:
        near_bytes *= 2
    gained_bits = (bits_of(2 * near_bytes) or 0) - near_bits
    if gained_bits <= 0:
        return near_bytes
    missing_bits = before_bits + (rise_bits or 0) - near_bits
    return near_bytes + -(-missing_bits * near_bytes // gained_bits)


def _may_rise(before_bits: int | None, now_bits: int | None, rise_bits: int | None) -> bool:
    if before_bits is None or now_bits is None or rise_bits is None:
        return True
    return now_bits < before_bits + rise_bits


def _may_fall(before_bits: int | None, now_bits: int | None, fall_bits: int | None) -> bool:
    if before_bits is None or now_bits is None:
        return before_bits == now_bits
    return now_bits <= before_bits and (fall_bits is None or before_bits - fall_bits <= now_bits)


def _first_other(same: int, other: int, guess: int, is_same: Callable[[int], bool]) -> int:
    """The first size that is not the same, between one that is and one that is not; sizes that are follow each other.

    Cost: few calls where it is the next size or near the guess, else as many as the distance from it has digits.
    """
    if not is_same(same + 1):
        return same + 1
    step = 1
    while other - same > 1:
        middle = min(max(guess, same + step), other - step)
        if not same < middle < other:
            middle = (same + other) // 2
        same, other = (middle, other) if is_same(middle) else (same, middle)
        step *= 2
    return other
