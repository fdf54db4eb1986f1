"""Bars by device for the terminal, and what its colours and characters mean."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from planner.devices.keys import DeviceKey
from planner.plans.bars import PARTS, Part, device_classes, segments
from planner.plans.parts import DevicePlan
from planner.units import format_bytes

__all__ = ["bars_table", "characters", "device_styles"]

_NARROWEST = 10
_WIDEST = 120
_NUMBER_WIDTH = 11  # "1000 MiB" and the space beside it
_NAME_WIDTH = 8

# Basic colours: the terminal's own palette keeps them legible on its background.
_STYLES = {"cpu": "yellow", "disk": "red"}
_ACCELERATOR_STYLES = ("cyan", "magenta", "green", "blue")

# By part: the character in a terminal that can draw, and in one that cannot.
_PART_CHARACTERS: dict[Part, tuple[str, str]] = {
    "used": ("█", "#"),
    "reserved": ("▒", "="),
    "headroom": ("╱", "/"),
    "free": ("·", "."),
}


def device_styles(ids: Sequence[DeviceKey]) -> tuple[str, ...]:
    """The colour of each device; accelerators take turns.

    Example:
        >>> device_styles([0, 1, "cpu"])
        ('cyan', 'magenta', 'yellow')
    """
    return tuple(
        _STYLES.get(name) or _ACCELERATOR_STYLES[int(name[1:]) % len(_ACCELERATOR_STYLES)]
        for name in device_classes(ids)
    )


def bars_table(devices: Sequence[DevicePlan], *, is_ascii: bool, width: int) -> Table:
    """A line for each device: bar, then the number of every part that any device has.

    Args:
        devices: in the plan's order.
        is_ascii: draw with ASCII only.
        width: columns of the terminal.
    """
    parts = [part for part in PARTS if part in ("used", "free") or _has(devices, part)]
    room = width - _NAME_WIDTH - _NUMBER_WIDTH * (len(parts) + 1)
    bar_width = min(_WIDEST, room)
    table = Table(box=None, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column("device", no_wrap=True)
    if bar_width >= _NARROWEST:
        table.add_column("", no_wrap=True, width=bar_width)
    for part in parts:
        table.add_column(f"{_PART_CHARACTERS[part][is_ascii]} {part}", justify="right", no_wrap=True)
    table.add_column("budget", justify="right", no_wrap=True)
    styles = device_styles([device.id for device in devices])
    for device, style in zip(devices, styles, strict=True):
        cells = [Text(str(device.id), style=f"bold {style}")]
        if bar_width >= _NARROWEST:
            cells.append(Text(_bar(device, bar_width, is_ascii), style=style))
        sizes = {segment.part: segment.size_bytes for segment in segments(device)}
        cells.extend(Text(_size(sizes[part])) for part in parts)
        cells.append(Text(_size(device.budget_bytes)))
        table.add_row(*cells)
    return table


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


def _bar(device: DevicePlan, width: int, is_ascii: bool) -> str:
    parts = segments(device)
    counts = characters([segment.share for segment in parts], width)
    return "".join(
        _PART_CHARACTERS[segment.part][is_ascii] * count for segment, count in zip(parts, counts, strict=True)
    )


def _has(devices: Sequence[DevicePlan], part: Part) -> bool:
    return any(
        segment.size_bytes for device in devices for segment in segments(device) if segment.part == part
    )


def _size(size_bytes: int | None) -> str:
    return "no limit" if size_bytes is None else format_bytes(size_bytes)
