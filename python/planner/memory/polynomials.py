"""Bytes of a run as polynomials in rows and tokens, so that a few recordings tell of all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, TypeAlias

from planner.errors import InvalidInputError
from planner.memory.tape import APART, CALL, ENTER, MADE, OUTPUT, REST, Event, Tape

__all__ = ["Basis", "Point", "Polynomials", "SizeAt", "fitted"]

Point: TypeAlias = tuple[int, int]
"""Rows and tokens."""

# Exponents of rows and of tokens. Scores are as many as the square of the tokens, and nothing is more.
_TOKENS: Final = ((0, 0), (0, 1), (0, 2))
_ROWS: Final = ((0, 0), (1, 0))
_BOTH: Final = tuple((row, token) for _, token in _TOKENS for row, _ in _ROWS)


@dataclass(frozen=True, slots=True)
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
        return cls(tuple(points), terms, _inverted([_powers(point, terms) for point in points]))

    def weights(self, point: Point) -> tuple[Fraction, ...]:
        """By point of a recording, how much what is there counts at another point.

        Raises:
            InvalidInputError: other rows, or other tokens, than those which all points have in common.
        """
        shared = [{each[at] for each in self.points} for at in (0, 1)]
        if any(len(values) == 1 and point[at] not in values for at, values in enumerate(shared)):
            raise InvalidInputError(
                f"recordings at {', '.join(map(str, self.points))} (rows, tokens) tell nothing of {point}"
            )
        powers = _powers(point, self.terms)
        return tuple(
            sum((power * row[at] for power, row in zip(powers, self.inverse, strict=True)), Fraction(0))
            for at in range(len(self.points))
        )


@dataclass(frozen=True, slots=True)
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
        weights = self.basis.weights((rows, tokens))
        sizes = {key: _weighed(key, weights) for key in self._distinct()}
        if any(size < 0 or size.denominator != 1 for size in sizes.values()):
            raise InvalidInputError(
                f"at {rows} rows of {tokens} tokens, the recordings do not tell what runs; record that point"
            )
        return self._with({key: int(size) for key, size in sizes.items()})

    def near(self, rows: int, tokens: int) -> Tape:
        """The tape of such a run, whose bytes know what they are elsewhere: see :class:`SizeAt`."""
        weights = self.basis.weights((rows, tokens))
        return self._with({key: SizeAt(key, weights) for key in self._distinct()})

    def _distinct(self) -> set[tuple[int, ...]]:
        """Few: layers are alike."""
        return {key for keys in self.values for key in keys}

    def _with(self, sizes: dict[tuple[int, ...], int]) -> Tape:
        events = tuple(
            _with_sizes(event, [sizes[key] for key in keys]) if keys else event
            for event, keys in zip(self.tape.events, self.values, strict=True)
        )
        return replace(self.tape, events=events)


class SizeAt(int):
    """Bytes at one point that know what they are in each recording, and so at every other point.

    Sums and differences know it, too; of two, the larger one is the one that is larger at this point. So whatever adds up the
    bytes of a tape and takes the largest of sums can be asked once, and its answer read at many points near by.

    Example:
        >>> weights = Basis.of([(1, 1), (2, 1)]).weights((3, 1))
        >>> whole = SizeAt((10, 20), weights) + SizeAt((1, 1), weights)
        >>> int(whole), whole.values
        (31, (11, 21))
    """

    values: tuple[int, ...]
    weights: tuple[Fraction, ...]

    def __new__(cls, values: tuple[int, ...], weights: tuple[Fraction, ...]) -> SizeAt:
        return cls._made(int(_weighed(values, weights)), values, weights)

    @classmethod
    def _made(cls, size: int, values: tuple[int, ...], weights: tuple[Fraction, ...]) -> SizeAt:
        made = int.__new__(cls, size)
        made.values, made.weights = values, weights
        return made

    def __add__(self, other: int) -> SizeAt:
        more = other.values if isinstance(other, SizeAt) else (other,) * len(self.values)
        values = tuple(map(int.__add__, self.values, more))
        return SizeAt._made(int.__add__(self, other), values, self.weights)

    __radd__ = __add__

    def __sub__(self, other: int) -> SizeAt:
        less = other.values if isinstance(other, SizeAt) else (other,) * len(self.values)
        values = tuple(map(int.__sub__, self.values, less))
        return SizeAt._made(int.__sub__(self, other), values, self.weights)

    def __rsub__(self, other: int) -> SizeAt:
        values = tuple(other - value for value in self.values)
        return SizeAt._made(int.__rsub__(self, other), values, self.weights)


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


def _powers(point: Point, terms: Sequence[tuple[int, int]]) -> list[Fraction]:
    return [Fraction(point[0] ** row * point[1] ** token) for row, token in terms]


def _weighed(values: Sequence[int], weights: Sequence[Fraction]) -> Fraction:
    return sum((weight * value for weight, value in zip(weights, values, strict=True)), Fraction(0))


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
