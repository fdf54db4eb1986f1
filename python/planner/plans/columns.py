"""Sizes that stand below each other, in one unit."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MOST_OF_A_UNIT = 2048
_NEARLY = 0.05  # by which a number may differ from the whole number that is shown for it


def in_one_unit(sizes_bytes: Sequence[int], *, up: bool = False) -> list[str]:
    """Sizes as people compare them: the largest decides the unit, unless the smallest one's will do for all.

    Args:
        sizes_bytes: at least 0.
        up: round up, for what has to be enough.

    Example:
        >>> in_one_unit([80 << 30, 24 << 30]), in_one_unit([30 << 30, 100 << 20])
        (['80 GiB', '24 GiB'], ['30.0 GiB', '0.1 GiB'])
        >>> in_one_unit([(3 << 30) + 1], up=True), in_one_unit([5 << 30, 1])
        (['3.01 GiB'], ['5.00 GiB', '<0.01 GiB'])
    """
    power = _power(max(sizes_bytes, default=0))
    finer = _power(min(filter(None, sizes_bytes), default=0))
    if max(sizes_bytes, default=0) < _MOST_OF_A_UNIT << 10 * finer:
        power = finer
    scaled = [size / (1 << 10 * power) for size in sizes_bytes]
    are_whole = all(abs(size - round(size)) < min(_NEARLY, size) for size in scaled)
    digits = 0 if power == 0 or (are_whole and not up) else 1 if max(scaled) >= 10 else 2
    return [f"{_shown(size, digits, up=up)} {_UNITS[power]}" for size in scaled]


def _power(size_bytes: int) -> int:
    """The unit in which one size is said."""
    return min((max(size_bytes, 1).bit_length() - 1) // 10, len(_UNITS) - 1)


def one_size(size_bytes: int, *, up: bool = False) -> str:
    """One size in a sentence.

    Example:
        >>> one_size(141_107_412_992), one_size(16 << 30), one_size(512)
        ('131.4 GiB', '16 GiB', '512 B')
    """
    return in_one_unit([size_bytes], up=up)[0]


def _shown(number: float, digits: int, *, up: bool) -> str:
    step = 10**digits
    rounded = ceil(number * step) / step if up else round(number, digits)
    return f"<{1 / step:g}" if number and not rounded else f"{rounded:.{digits}f}"
