"""What blocks need at any number of rows and tokens, from a few recordings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.memory.demands import BlockDemand, Demands
from planner.memory.polynomials import Basis, Point, Polynomials, SizeAt
from planner.memory.vectors import demands_of

__all__ = ["DemandPolynomials"]


class DemandPolynomials:
    """Demands of a model, which are the largest of many sums of bytes: each sum is a polynomial, and which is the largest is known at
    some points.

    Args:
        basis: where the recordings were made.
        runs: their polynomials, one for each recording of a workload.
        main_needs_bytes: by point of the basis, what the model's caller needs beside it.

    Guarantee: exact at every point that was looked at; elsewhere never above what blocks need, and below it only where another sum
        becomes the largest.
    """

    def __init__(self, basis: Basis, runs: Sequence[Polynomials], main_needs_bytes: Sequence[int]) -> None:
        self._basis = basis
        self._runs = runs
        self._main_needs_bytes = tuple(main_needs_bytes)
        self._known: list[Demands] = []

    def look_at(self, point: Point) -> None:
        """Finds the largest sums at one more point. Cost: O(events)."""
        main = SizeAt(self._main_needs_bytes, self._basis.weights(point))
        self._known.append(demands_of([run.near(*point) for run in self._runs], main_needs_bytes=main))

    def at(self, point: Point) -> Demands:
        """What blocks need at a point. Cost: O(blocks)."""
        value = _read_at(self._basis, point)
        each = [
            Demands(
                blocks={
                    name: BlockDemand(
                        cache_bytes=value(demand.cache_bytes),
                        lasting_bytes=value(demand.lasting_bytes),
                        needs_bytes=value(demand.needs_bytes),
                        resting_bytes=value(demand.resting_bytes),
                    )
                    for name, demand in known.blocks.items()
                },
                shared_bytes=value(known.shared_bytes),
                method="recorded",
                notes=known.notes,
            )
            for known in self._known
        ]
        return Demands.most_of(each)


def _read_at(basis: Basis, point: Point) -> Callable[[int], int]:
    weights = basis.weights(point)
    read: dict[tuple[int, ...], int] = {}

    def value(size: int) -> int:
        if not isinstance(size, SizeAt):
            return size
        if size.values not in read:  # layers are alike
            read[size.values] = int(SizeAt(size.values, weights))
        return read[size.values]

    return value
