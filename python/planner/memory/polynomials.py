"""Bytes of a run as polynomials in rows and tokens, so that six recordings tell of all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias

from planner.errors import InvalidInputError
from planner.memory.tape import APART, CALL, ENTER, MADE, OUTPUT, Event, Tape

__all__ = ["POINTS", "Polynomials", "fitted"]

Point: TypeAlias = tuple[int, int]
"""Rows and tokens."""

POINTS = 6
"""Recordings that determine a polynomial (1, b, s, bs, s², bs²): at two numbers of rows and three of tokens."""


@dataclass(frozen=True, slots=True)
class Polynomials:
    """A tape whose bytes are polynomials.

    Args:
        tape: one of the recordings.
        coefficients: by the bytes that the recordings have in one place, those of their polynomial.
        values: by event, keys of `coefficients`: one for a storage, one for each row of arguments.
    """

    tape: Tape
    coefficients: dict[tuple[int, ...], tuple[Fraction, ...]]
    values: tuple[tuple[tuple[int, ...], ...], ...]

    def at(self, rows: int, tokens: int) -> Tape:
        """The tape of a run with so many rows and tokens.

        Raises:
            InvalidInputError: a number of bytes there is none, so the run has other operators.

        Cost: O(events).
        """
        basis = _basis((rows, tokens))
        sizes = {
            key: sum((part * each for part, each in zip(parts, basis, strict=True)), Fraction(0))
            for key, parts in self.coefficients.items()
        }
        if any(size < 0 or size.denominator != 1 for size in sizes.values()):
            raise InvalidInputError(
                f"at {rows} rows of {tokens} tokens, the recordings do not tell what runs; record that point"
            )
        whole = {key: int(size) for key, size in sizes.items()}
        events = tuple(
            _with_sizes(event, [whole[key] for key in keys]) if keys else event
            for event, keys in zip(self.tape.events, self.values, strict=True)
        )
        return replace(self.tape, events=events)


def fitted(points: Sequence[Point], tapes: Sequence[Tape]) -> Polynomials | None:
    """The polynomials through recordings.

    Args:
        points: rows and tokens of each recording: two numbers of rows with three of tokens each.
        tapes: the recordings, of one model.

    Returns:
        None where the recordings have run different operators, as those of chunked attention do: then each point is recorded.

    Raises:
        InvalidInputError: points that determine no polynomial.
    """
    if len(points) != POINTS or len(tapes) != POINTS:
        raise InvalidInputError(f"a polynomial takes {POINTS} recordings, not {len(tapes)}")
    first = tapes[0].operators()
    if any(len(tape.events) != len(first) or tape.operators() != first for tape in tapes[1:]):
        return None
    inverse = _inverted([_basis(point) for point in points])
    coefficients: dict[tuple[int, ...], tuple[Fraction, ...]] = {}
    values = []
    for events in zip(*(tape.events for tape in tapes), strict=True):
        keys = tuple(zip(*(_sizes(event) for event in events), strict=True))
        for key in keys:
            if key not in coefficients:
                coefficients[key] = tuple(
                    sum((part * size for part, size in zip(row, key, strict=True)), Fraction(0))
                    for row in inverse
                )
        values.append(keys)
    return Polynomials(tapes[0], coefficients, tuple(values))


def _basis(point: Point) -> list[Fraction]:
    rows, tokens = point
    return [Fraction(each) for each in (1, rows, tokens, rows * tokens, tokens**2, rows * tokens**2)]


def _inverted(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
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
    return [row[count:] for row in rows]


def _sizes(event: Event) -> tuple[int, ...]:
    if event[0] == MADE:
        return (event[2],)
    if event[0] in (ENTER, APART, CALL):
        return tuple(row[3] for row in event[2])
    return tuple(row[3] for row in event[1]) if event[0] == OUTPUT else ()


def _with_sizes(event: Event, sizes: list[int]) -> Event:
    if event[0] == MADE:
        return (*event[:2], sizes[0], *event[3:])
    at = 1 if event[0] == OUTPUT else 2
    rows = tuple((*row[:3], size) for row, size in zip(event[at], sizes, strict=True))
    return (*event[:at], rows)
