"""The strip for the terminal: runs of blocks in the order of execution, above the devices where they lie and run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from planner.devices.keys import DeviceKey
from planner.plans.columns import in_one_unit
from planner.plans.strip import Piece, place_words
from planner.report.device_looks import device_characters, device_styles, shown
from planner.report.terminal_bars import characters

__all__ = ["strip_lines"]

_WIDEST = 110  # cells of a strip
_MOST_ROWS = 3  # before a list reads better
_LEAST_WIDTH = 50  # columns from which a strip is tried
_MOST_LINES = 24  # of a list


def strip_lines(
    pieces: Sequence[Piece], devices: Sequence[DeviceKey], *, is_ascii: bool, width: int
) -> Iterator[Text]:
    """The lines of a strip; a list where the terminal is narrow or the pieces are many.

    Args:
        pieces: in the order of execution.
        devices: the plan's, in its order.
        is_ascii: draw with ASCII only.
        width: columns of the terminal.
    """
    drawing = _Drawing(devices, is_ascii)
    rows = drawing.rows(pieces, min(_WIDEST, width - 2))
    yield Text(" in the order of execution", style="dim")
    if width >= _LEAST_WIDTH and len(rows) <= _MOST_ROWS:
        for row in rows:
            yield from drawing.row(row, min(_WIDEST, width - 2))
    else:
        yield from drawing.listed(pieces, width)


class _Drawing:
    def __init__(self, devices: Sequence[DeviceKey], is_ascii: bool) -> None:
        self._is_ascii = is_ascii
        self._marks = dict(zip(devices, device_characters(devices, is_ascii=is_ascii), strict=True))
        self._styles = dict(zip(devices, device_styles(devices), strict=True))

    def rows(self, pieces: Sequence[Piece], width: int) -> list[list[Piece]]:
        """As few rows as hold all pieces with their words, about equally long."""
        least = self._least_widths(pieces)
        count = len(_packed(pieces, least, width))
        even = max([*least, -(-sum(least) // max(count, 1))], default=0)
        tried = (_packed(pieces, least, each) for each in range(even, width))
        return next((rows for rows in tried if len(rows) <= count), _packed(pieces, least, width))

    def row(self, pieces: Sequence[Piece], width: int) -> Iterator[Text]:
        """Two lines: the strip, and where it lies; one device in a row is said once."""
        least = self._least_widths(pieces)
        weights = [piece.count if piece.size_bytes is None else piece.size_bytes for piece in pieces]
        whole = sum(weights) or 1
        spare = characters([weight / whole for weight in weights], max(0, width - sum(least)))
        above, below = Text(" "), Text(" ")
        for piece, cell, more in zip(pieces, least, spare, strict=True):
            style, mark = self._styles[piece.home], self._marks[piece.home]
            label = f" {self._shown(piece.label)} "
            filling = max(0, cell + more - 1 - len(label) - 1)
            above.append(mark, style).append(label).append(mark * filling, style).append(" ")
            below.append(self._place(piece).ljust(cell + more), style)
        above.rstrip()
        below.rstrip()
        yield above
        yield below

    def listed(self, pieces: Sequence[Piece], width: int) -> Iterator[Text]:
        """A line for each piece."""
        shown_pieces = pieces if len(pieces) <= _MOST_LINES else pieces[: _MOST_LINES - 1]
        label_width = max(len(self._shown(piece.label)) for piece in shown_pieces)
        known = iter(
            in_one_unit([piece.size_bytes for piece in shown_pieces if piece.size_bytes is not None])
        )
        sizes = ["" if piece.size_bytes is None else next(known) for piece in shown_pieces]
        size_width = max(map(len, sizes))
        for piece, size in zip(shown_pieces, sizes, strict=True):
            style = self._styles[piece.home]
            label = self._shown(piece.label).ljust(label_width)
            line = Text.assemble(" ", (self._marks[piece.home], style), f" {label}  {size:>{size_width}}  ")
            place = self._place(piece)
            if line.cell_len + len(place) > width:
                place = place.replace("runs on ", "")
            yield line.append(place, style)
        left = pieces[len(shown_pieces) :]
        if left:
            yield Text(f"   and {len(left)} more runs of blocks", style="dim")

    def _least_widths(self, pieces: Sequence[Piece]) -> list[int]:
        return [max(len(self._shown(piece.label)) + 4, len(self._place(piece)) + 2) for piece in pieces]

    def _place(self, piece: Piece) -> str:
        return self._shown(place_words(piece))

    def _shown(self, text: str) -> str:
        return shown(text, is_ascii=self._is_ascii)


def _packed(pieces: Sequence[Piece], least: Sequence[int], width: int) -> list[list[Piece]]:
    """Pieces in rows, each as full as it goes."""
    rows: list[list[Piece]] = [[]]
    taken = 0
    for piece, cell in zip(pieces, least, strict=True):
        if rows[-1] and taken + cell > width:
            rows.append([])
            taken = 0
        rows[-1].append(piece)
        taken += cell
    return rows
