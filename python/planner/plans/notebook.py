"""A plan's devices as plain HTML: what a notebook shows, and what the report begins with. No script, no style sheet."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from planner.names import counted
from planner.plans.bars import PARTS, Segment, bar_words, device_classes, segments
from planner.plans.parts import DevicePlan
from planner.units import format_bytes

__all__ = ["devices_table", "markup", "snippet"]

_OPACITY = {"used": 0.8, "reserved": 0.45, "headroom": 0.2, "free": 0.0}


def markup(text: object) -> str:
    """Text as HTML, safe between tags and inside quotes, whatever it holds.

    Example:
        >>> markup("<b>'&")
        '&lt;b&gt;&#x27;&amp;'
    """
    # A lone surrogate cannot be written to a file; as a reference it can, and browsers show the replacement character.
    return html.escape(str(text)).encode("utf-8", "xmlcharrefreplace").decode("utf-8")


def devices_table(devices: Sequence[DevicePlan]) -> str:
    """A table with a bar and the numbers of each device.

    Args:
        devices: a plan's devices.

    Returns:
        HTML whose classes a style sheet may use; without one, bars are shades of the text's colour.
    """
    heads = "".join(f'<th scope="col" data-part="{part}">{part}</th>' for part in (*PARTS, "budget"))
    classes = device_classes([device.id for device in devices])
    bodies = "".join(_device_rows(name, device) for name, device in zip(classes, devices, strict=True))
    return (
        '<table class="devices"><caption>Bytes by device</caption>'
        f'<thead><tr><th scope="col">device</th>{heads}</tr></thead>{bodies}</table>'
    )


def snippet(
    devices: Sequence[DevicePlan],
    *,
    blocks: int,
    total_bytes: int,
    offloaded_bytes: Mapping[str, int],
    proof: str,
) -> str:
    """A plan in a notebook: what was planned, bytes by device, what is offloaded.

    Args:
        devices: the plan's devices.
        blocks: how many blocks were planned.
        total_bytes: their stored bytes.
        offloaded_bytes: bytes by tier.
        proof: in words, whether no plan offloads less.

    Returns:
        HTML without script, style sheet or identifiers, so that many can stand in one page.
    """
    offloaded = sum(offloaded_bytes.values())
    remark = f"{format_bytes(offloaded)} offloaded, {proof}" if offloaded else "nothing is offloaded"
    headline = f"Plan of {counted(blocks, 'block')}, {format_bytes(total_bytes)}; {remark}"
    return f'<div class="planner-plan"><p>{markup(headline)}</p>{devices_table(devices)}</div>'


def _device_rows(class_name: str, device: DevicePlan) -> str:
    """Two rows under one heading, so that the bar is as wide as all the numbers together."""
    parts = segments(device)
    cells = "".join(_size_cell(segment.part, segment.size_bytes) for segment in parts)
    return (
        f'<tbody class="{class_name}" data-device="{markup(device.id)}">'
        f'<tr><th scope="rowgroup" rowspan="2">{markup(device.id)}</th>'
        f'<td colspan="{len(PARTS) + 1}">{_bar(device, parts)}</td></tr>'
        f"<tr>{cells}{_size_cell('budget', device.budget_bytes)}</tr></tbody>"
    )


def _size_cell(part: str, size_bytes: int | None) -> str:
    if size_bytes is None:
        return f'<td data-part="{part}">no limit</td>'
    return f'<td data-part="{part}"><data value="{markup(size_bytes)}">{format_bytes(size_bytes)}</data></td>'


def _bar(device: DevicePlan, parts: tuple[Segment, ...]) -> str:
    rects, left = [], 0.0
    for segment in parts:
        width = segment.share * 100
        if width:
            rects.append(
                f'<rect class="{segment.part}" x="{left:.3f}%" y="0" width="{width:.3f}%" height="100%" '
                f'fill="currentColor" fill-opacity="{_OPACITY[segment.part]}"/>'
            )
        left += width
    return (
        f'<svg class="bar" role="img" aria-label="{markup(bar_words(device))}" width="100%" height="16">{"".join(rects)}'
        '<rect class="frame" x="0" y="0" width="100%" height="100%" fill="none" stroke="currentColor"/></svg>'
    )
