"""Bars by device for the terminal: accelerators on one scale, then what is taken and what is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from planner.plans.bars import Part, segments
from planner.plans.first_screen import DeviceLine
from planner.plans.places import place_name
from planner.report.device_looks import PART_CHARACTERS, device_characters, device_styles, shown

__all__ = ["bar_lines", "characters"]

_WIDEST = 60  # cells of a bar
_WIDE_ENOUGH = 24  # below this, remarks and names of cards give way
_NARROWEST = 12  # below this, a bar has a line of its own
_LEGEND: dict[Part, str] = {
    "buffers": "buffers of offloaded blocks",
    "cache": "cache",
    "activations": "activations",
    "margin": "allocator's margin",
    "reserved": "kept for streaming",
    "headroom": "headroom",
}


def bar_lines(lines: Sequence[DeviceLine], *, is_ascii: bool, width: int) -> Iterator[Text]:
    """The lines of a table of devices.

    Args:
        lines: devices in words.
        is_ascii: draw with ASCII only.
        width: columns of the terminal.

    Guarantee: no line is wider than the terminal, as long as that has forty columns.
    """
    table = _Table(lines, is_ascii, width)
    yield from table.lines()
    parts = [part for part in _LEGEND if any(_has(line, part) for line in lines)]
    if parts:
        words = "  ".join(f"{PART_CHARACTERS[part][is_ascii]} {_LEGEND[part]}" for part in parts)
        yield Text(f" {words}", style="dim")


class _Table:
    """Widths of columns for one width of the terminal."""

    def __init__(self, lines: Sequence[DeviceLine], is_ascii: bool, width: int) -> None:
        self._rows, self._is_ascii = lines, is_ascii
        ids = [line.device.id for line in lines]
        self._styles = device_styles(ids)
        self._used = device_characters(ids, is_ascii=is_ascii)
        self._budget_width = max(len(line.budget) for line in lines)
        self._largest_bytes = max(
            (line.device.budget_bytes or 0 for line in lines if line.device.kind == "accelerator"), default=0
        )
        self._is_stacked = False
        for self._has_cards, self._has_remarks in ((True, True), (False, True), (False, False)):
            self._bar_width = min(_WIDEST, width - self._words_width())
            if self._bar_width >= _WIDE_ENOUGH:
                break
        self._is_stacked = self._bar_width < _NARROWEST
        if self._is_stacked:
            self._bar_width = min(_WIDEST, width - 2)

    def lines(self) -> Iterator[Text]:
        names = [self._name(line) for line in self._rows]
        name_width = max(map(len, names))
        for index, (line, name) in enumerate(zip(self._rows, names, strict=True)):
            style = self._styles[index]
            head = Text.assemble(
                " ", (name.ljust(name_width), f"bold {style}"), f"  {line.budget:>{self._budget_width}}"
            )
            bar = self._bar(line, self._used[index])
            tail = f"  {line.percent:>4}  {self._left(line)}".rstrip()
            if self._is_stacked:
                yield head.append(tail)
                yield Text.assemble(" ", (bar.rstrip(), style))
            else:
                yield Text.assemble(head, "  ", (bar, style), tail)
        if not self._has_remarks:
            for line, name in zip(self._rows, names, strict=True):
                if line.remark:
                    yield Text(f" {name} has {line.remark}.")

    def _name(self, line: DeviceLine) -> str:
        card = (line.device.name or "").removeprefix("NVIDIA ") if self._has_cards else ""
        return shown(
            f"{place_name(line.device.id)}  {card}".strip().removeprefix("the "), is_ascii=self._is_ascii
        )

    def _left(self, line: DeviceLine) -> str:
        if self._is_stacked:
            return line.left.replace("of weights rest here", "used")
        return f"{line.left}: {line.remark}" if line.remark and self._has_remarks else line.left

    def _words_width(self) -> int:
        """Columns of everything but the bar."""
        name_width = max(len(self._name(line)) for line in self._rows)
        return (
            1
            + name_width
            + 2
            + self._budget_width
            + 2
            + 8
            + max(len(self._left(line)) for line in self._rows)
        )

    def _bar(self, line: DeviceLine, used: str) -> str:
        device, width = line.device, self._bar_width
        if device.kind == "accelerator" and self._largest_bytes:
            width = max(2, round(width * (device.budget_bytes or 0) / self._largest_bytes))
        if device.budget_bytes is None:  # nothing to measure by
            return (used if device.used_bytes else "").ljust(self._bar_width)
        parts = segments(device)
        counts = characters([segment.share for segment in parts], width)
        marks = [used, *(PART_CHARACTERS[segment.part][self._is_ascii] for segment in parts[1:])]
        return "".join(mark * count for mark, count in zip(marks, counts, strict=True)).ljust(self._bar_width)


def characters(shares: Sequence[float], width: int) -> list[int]:
    """Characters for each share, by largest remainder; a share above 0 has at least one where there are enough.

    Example:
        >>> characters([0.5, 0.001, 0.0, 0.499], 10)
        [5, 1, 0, 4]
    """
    present = [share > 0 for share in shares]
    if sum(present) > width or not any(present):
        return [0] * len(shares)
    counts = [max(int(share * width), int(is_there)) for share, is_there in zip(shares, present, strict=True)]
    order = sorted(range(len(shares)), key=lambda each: counts[each] - shares[each] * width)
    for each in order:
        counts[each] += present[each] and sum(counts) < width
    while sum(counts) > width:
        counts[max(range(len(counts)), key=counts.__getitem__)] -= 1
    return counts


def _has(line: DeviceLine, part: Part) -> bool:
    return any(segment.size_bytes for segment in segments(line.device) if segment.part == part)
