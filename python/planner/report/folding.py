"""Rows folded for reading: what lies on one device is one line, repeated numbered siblings are one range."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from planner.report.rows import NOTHING, SEVERAL, Rows

__all__ = ["Fold", "fold_rows"]

_DEEPEST = 40  # levels that are unfolded; deeper lines are not read, and recursion has to end


@dataclass(frozen=True, slots=True)
class Fold:
    """One line of a folded tree.

    Args:
        label: local name, or a range of them as in "layers.0-57".
        count: modules that the line stands for.
        size_bytes: bytes of all of them.
        home: device by index, or SEVERAL.
        run: likewise, where they run.
        inside: lines below, for what lies on several devices.
    """

    label: str
    count: int
    size_bytes: int | float
    home: int
    run: int
    inside: tuple[Fold, ...]


def fold_rows(rows: Rows) -> Fold:
    """The folded tree of a plan.

    Guarantee: bytes of the lines below add up to those of the line above; a line without lines below it lies on one
        device and runs on one device, unless it is forty levels deep.

    Cost: O(rows).
    """
    return _Folding(rows).fold([0], "the model", 0)


class _Folding:
    """Folds rows; shapes of subtrees are numbered, so that two of them are compared in one step."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.local = [name[len(rows.names[above]) + 1 :] if above > 0 else name
                      for name, above in zip(rows.names, rows.parents, strict=True)]  # fmt: skip
        self.inside = [
            [child for child in inside if rows.homes[child] != NOTHING] for inside in rows.children()
        ]
        self.shapes = self._shapes()

    def fold(self, members: list[int], label: str, depth: int) -> Fold:
        """The line for modules of one shape."""
        rows, first = self.rows, members[0]
        is_opened = self._is_mixed(first) and depth < _DEEPEST
        return Fold(
            label=label,
            count=len(members),
            size_bytes=sum(rows.sizes_bytes[row] for row in members),
            home=rows.homes[first],
            run=rows.runs[first],
            inside=tuple(self._lines(members, depth + 1)) if is_opened else (),
        )

    def _lines(self, members: list[int], depth: int) -> Iterator[Fold]:
        """Lines below modules of one shape: each stands for the same child of all of them, or for a range of such."""
        columns = list(zip(*(self.inside[row] for row in members), strict=True))
        for run in _runs(columns, self._continues):
            label = self._label([column[0] for column in run])
            below = [row for column in run for row in column]
            if self._is_wrapper(below[0]) and depth < _DEEPEST:
                # The items of a list stand under the list's name; a line for the list itself would say nothing.
                for line in self._lines(below, depth + 1):
                    yield replace(line, label=f"{label}.{line.label}")
            else:
                yield self.fold(below, label, depth)

    def _label(self, siblings: Sequence[int]) -> str:
        first, last = self.local[siblings[0]], self.local[siblings[-1]]
        return first if first == last else f"{first}-{last}"

    def _continues(self, left: Sequence[int], right: Sequence[int]) -> bool:
        """Whether two neighbours are items 3 and 4 of a list and look the same."""
        before, after = self.local[left[0]], self.local[right[0]]
        return (
            self.shapes[left[0]] == self.shapes[right[0]]
            and _is_number(before)
            and _is_number(after)
            and int(after) == int(before) + 1
        )

    def _is_wrapper(self, row: int) -> bool:
        inside = self.inside[row]
        is_list = len(inside) == 1 or all(_is_number(self.local[child]) for child in inside)
        return self._is_mixed(row) and is_list

    def _is_mixed(self, row: int) -> bool:
        return bool(self.inside[row]) and SEVERAL in (self.rows.homes[row], self.rows.runs[row])

    def _shapes(self) -> list[int]:
        """A number for each row, the same for rows that look the same but for their own name."""
        numbers: dict[Any, int] = {}
        shapes = [0] * len(self.inside)
        for row in reversed(range(len(shapes))):
            key: tuple[Any, ...] = (self.rows.homes[row], self.rows.runs[row])
            if self._is_mixed(row):
                key += tuple((self.local[child], shapes[child]) for child in self.inside[row])
            shapes[row] = numbers.setdefault(key, len(numbers))
        return shapes


def _runs(
    columns: Sequence[tuple[int, ...]], continues: Callable[[Sequence[int], Sequence[int]], bool]
) -> list[list[tuple[int, ...]]]:
    """Columns cut where one does not continue the one before."""
    runs: list[list[tuple[int, ...]]] = []
    for column in columns:
        if runs and continues(runs[-1][-1], column):
            runs[-1].append(column)
        else:
            runs.append([column])
    return runs


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()
