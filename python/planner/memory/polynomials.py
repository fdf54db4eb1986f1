"""Bytes of a run as polynomials in rows and tokens, so that a few recordings tell of all others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import lcm
from operator import mul
from typing import Final, TypeAlias

from planner.errors import InvalidInputError
from planner.memory.tape import APART, CALL, ENTER, MADE, OUTPUT, REST, Event, RunBytes, Tape

__all__ = ["Basis", "FittedRun", "Point", "Polynomials", "fitted"]

Point: TypeAlias = tuple[int, int]
"""Rows and tokens."""

# Exponents of rows and of tokens. Scores are as many as the square of the tokens, and nothing is more.
_TOKENS: Final = ((0, 0), (0, 1), (0, 2))
_ROWS: Final = ((0, 0), (1, 0))
_BOTH: Final = tuple((row, token) for _, token in _TOKENS for row, _ in _ROWS)


@dataclass(frozen=True)
class Basis:
    """Points that determine polynomials, and how much each of them counts elsewhere.

    Args:
        points: of the recordings.
        terms: exponents of rows and tokens: (1, s, s²) where the points have rows in common, (1, b) where they have tokens in
            common, else (1, b, s, bs, s², bs²).
        inverse: coefficients of the terms by what is 1 at one point and 0 at the others.
    """

    points: tuple[Point, ...]
    terms: tuple[tuple[int, int], ...]
    inverse: tuple[tuple[Fraction, ...], ...]

    @classmethod
    def of(cls, points: Sequence[Point]) -> Basis:
        """The basis of some points.

        Raises:
            InvalidInputError: points that determine no polynomial.

        Example:
            >>> Basis.of([(1, 64), (1, 128), (1, 192)]).terms
            ((0, 0), (0, 1), (0, 2))
        """
        same_rows, same_tokens = (len(set(each)) == 1 for each in zip(*points, strict=True))
        terms = _TOKENS if same_rows else _ROWS if same_tokens else _BOTH
        if len(points) != len(terms):
            raise InvalidInputError(
                f"a polynomial of {len(terms)} terms takes as many recordings, not {len(points)}"
            )
        return cls(
            tuple(points), terms, _inverted([list(map(Fraction, _powers(point, terms))) for point in points])
        )

    def weights(self, point: Point) -> tuple[list[int], int]:
        """By point of a recording, how much what is there counts at another point: so many, of so many in all.

        Raises:
            InvalidInputError: other rows, or other tokens, than those which all points have in common.
        """
        shared = [{each[at] for each in self.points} for at in (0, 1)]
        if any(len(values) == 1 and point[at] not in values for at, values in enumerate(shared)):
            raise InvalidInputError(
                f"recordings at {', '.join(map(str, self.points))} (rows, tokens) tell nothing of {point}"
            )
        counts, whole = self._counts
        powers = _powers(point, self.terms)
        return [sum(map(mul, powers, column)) for column in counts], whole

    @cached_property
    def _counts(self) -> tuple[list[list[int]], int]:
        """The inverse by point, in whole numbers, and what these are parts of."""
        whole = lcm(*(each.denominator for row in self.inverse for each in row))
        return [[int(each * whole) for each in column] for column in zip(*self.inverse, strict=True)], whole


@dataclass(frozen=True)
class Polynomials:
    """A tape whose bytes are polynomials.

    Args:
        tape: one of the recordings.
        basis: where these were made.
        values: by event, for a storage or for each row of arguments, its bytes in all recordings.
    """

    tape: Tape
    basis: Basis
    values: tuple[tuple[tuple[int, ...], ...], ...]

    def at(self, rows: int, tokens: int) -> Tape:
        """The tape of a run with so many rows and tokens.

        Raises:
            InvalidInputError: a number of bytes there is none, so the run has other operators; or the recordings tell nothing of it.

        Cost: O(events).
        """
        return self._with(dict(zip(self._keys, self._sizes_at((rows, tokens)), strict=True)))

    def run(self) -> FittedRun:
        """The same to be read at many points."""
        numbers = {key: number for number, key in enumerate(self._keys)}
        run = self._with(numbers).run
        keys = tuple(self._keys)
        return FittedRun(run, self.basis, tuple(keys[number] for number in run.columns.sizes()))

    @cached_property
    def _keys(self) -> list[tuple[int, ...]]:
        """Few: layers are alike."""
        return list(dict.fromkeys(key for keys in self.values for key in keys))

    def _sizes_at(self, point: Point) -> list[int]:
        return _read_at(self.basis, self._keys, point)

    def _with(self, sizes: dict[tuple[int, ...], int]) -> Tape:
        events = tuple(
            _with_sizes(event, [sizes[key] for key in keys]) if keys else event
            for event, keys in zip(self.tape.events, self.values, strict=True)
        )
        return replace(self.tape, events=events)


@dataclass(frozen=True, slots=True)
class FittedRun:
    """A run whose bytes are known at every point.

    Args:
        run: with numbers in the place of bytes.
        basis: where recordings were made.
        values: by size of the run, its bytes in all recordings.
    """

    run: RunBytes
    basis: Basis
    values: tuple[tuple[int, ...], ...]

    def at(self, point: Point) -> RunBytes:
        """The bytes of a run at one point.

        Raises:
            InvalidInputError: a number of bytes there is none, so the run has other operators; or the recordings tell nothing of it.

        Cost: O(distinct sizes), which are few.
        """
        sizes = _read_at(self.basis, self.values, point)
        return replace(self.run, columns=self.run.columns.with_sizes(sizes))


def fitted(points: Sequence[Point], tapes: Sequence[Tape]) -> Polynomials | None:
    """The polynomials through recordings.

    Args:
        points: rows and tokens of each recording: two numbers of rows with three of tokens each; or, for other tokens alone, three
            of tokens; or, for other rows alone, two of rows.
        tapes: the recordings, of one model.

    Returns:
        None where the recordings have run different operators, as those of chunked attention do: then each point is recorded.

    Raises:
        InvalidInputError: points that determine no polynomial.
    """
    if len(points) != len(tapes):
        raise InvalidInputError(f"{len(points)} points have {len(tapes)} recordings")
    basis = Basis.of(points)
    first = tapes[0].operators()
    if any(len(tape.events) != len(first) or tape.operators() != first for tape in tapes[1:]):
        return None
    values = tuple(
        tuple(zip(*map(_sizes, events), strict=True))
        for events in zip(*(tape.events for tape in tapes), strict=True)
    )
    return Polynomials(tapes[0], basis, values)


def _powers(point: Point, terms: Sequence[tuple[int, int]]) -> list[int]:
    return [point[0] ** row * point[1] ** token for row, token in terms]


def _read_at(basis: Basis, values: Iterable[Sequence[int]], point: Point) -> list[int]:
    """Bytes at a point. Raises InvalidInputError."""
    counts, whole = basis.weights(point)
    found = []
    for each in values:
        size, rest = divmod(sum(map(mul, counts, each)), whole)
        if rest or size < 0:
            raise InvalidInputError(
                f"at {point[0]} rows of {point[1]} tokens, the recordings do not tell what runs; record that point"
            )
        found.append(size)
    return found


def _inverted(matrix: list[list[Fraction]]) -> tuple[tuple[Fraction, ...], ...]:
    count = len(matrix)
    rows = [[*row, *(Fraction(at == place) for at in range(count))] for place, row in enumerate(matrix)]
    for at in range(count):
        pivot = next((place for place in range(at, count) if rows[place][at]), None)
        if pivot is None:
            raise InvalidInputError("a polynomial takes two numbers of rows, with three of tokens each")
        rows[at], rows[pivot] = rows[pivot], rows[at]
        rows[at] = [each / rows[at][at] for each in rows[at]]
        for place in range(count):
            if place != at and rows[place][at]:
                factor = rows[place][at]
                rows[place] = [a - factor * b for a, b in zip(rows[place], rows[at], strict=True)]
    return tuple(tuple(row[count:]) for row in rows)


def _sizes(event: Event) -> tuple[int, ...]:
    if event[0] in (MADE, REST):
        return (event[2],)
    if event[0] in (ENTER, APART, CALL):
        return tuple(row[3] for row in event[2])
    return tuple(row[3] for row in event[1]) if event[0] == OUTPUT else ()


def _with_sizes(event: Event, sizes: list[int]) -> Event:
    if event[0] in (MADE, REST):
        return (*event[:2], sizes[0], *event[3:])
    at = 1 if event[0] == OUTPUT else 2
    rows = tuple((*row[:3], size) for row, size in zip(event[at], sizes, strict=True))
    return (*event[:at], rows)
