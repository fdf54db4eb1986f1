"""Which of the weights that are fetched from the host lie on the disk where the host has no room for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Spillable", "spilled"]


@dataclass(frozen=True, slots=True)
class Spillable:
    """Pieces with one home that may be the disk.

    Args:
        pieces: their numbers.
        size_bytes: room that the host gets back.
        extra_ps: what a step takes longer.
    """

    pieces: tuple[int, ...]
    size_bytes: int
    extra_ps: int


def spilled(units: Iterable[Spillable], lacking_bytes: int) -> Sequence[Spillable]:
    """Units that free so many bytes, and cost little together.

    Args:
        units: to choose from.
        lacking_bytes: at least so many have to be freed.

    Returns:
        Those that cost least for a byte, the last of a model first among like ones, with one in the place of the last few where that
        costs less; all of them where they are too few.

    Guarantee: where all are alike, none cost less.

    Cost: O(units^2) comparisons.

    Example:
        >>> units = [Spillable((0,), 4, 40), Spillable((1,), 4, 12), Spillable((2,), 4, 12), Spillable((3,), 8, 26)]
        >>> [unit.pieces for unit in spilled(units, 4)], [unit.pieces for unit in spilled(units, 8)]
        ([(2,)], [(2,), (1,)])
        >>> [unit.pieces for unit in spilled(units, 9)]
        [(2,), (3,)]
    """
    order = sorted(
        (unit for unit in units if unit.size_bytes),
        key=lambda unit: (unit.extra_ps / unit.size_bytes, -max(unit.pieces)),
    )
    best: list[Spillable] | None = None
    taken: list[Spillable] = []
    freed_bytes = 0
    for at, unit in enumerate(order):
        # The first few, and one that frees all that is still lacking.
        lacks = lacking_bytes - freed_bytes
        if lacks <= 0:
            break
        last = min(
            (other for other in order[at:] if other.size_bytes >= lacks),
            key=lambda other: (other.extra_ps, -max(other.pieces)),
            default=None,
        )
        if last is not None and (best is None or _extra_ps([*taken, last]) < _extra_ps(best)):
            best = [*taken, last]
        taken.append(unit)
        freed_bytes += unit.size_bytes
    return taken if best is None else best


def _extra_ps(units: Iterable[Spillable]) -> int:
    return sum(unit.extra_ps for unit in units)
