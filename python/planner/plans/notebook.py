"""The first screen as plain HTML: what a notebook shows, and what the report begins with. No script, no style sheet."""

from __future__ import annotations

import html
from collections.abc import Iterable

from planner.plans.bars import bar_words, device_classes, segments
from planner.plans.colours import DEVICE_COLOURS
from planner.plans.first_screen import DeviceLine, FirstScreen, first_screen
from planner.plans.no_plan import NoPlan
from planner.plans.parts import PlanParts
from planner.plans.places import place_name
from planner.plans.strip import Piece, place_words

__all__ = ["advice_list", "devices_table", "markup", "notices_list", "snippet", "strip_picture"]

_OPACITY = {
    "used": 1.0,
    "buffers": 0.9,
    "cache": 0.8,
    "activations": 0.65,
    "margin": 0.2,
    "reserved": 0.55,
    "headroom": 0.3,
    "free": 0.0,
}
_BAR_PIXELS = 360
_LEAST_PERCENT = 1.5  # of a strip, for pieces without bytes to speak of


def markup(text: object) -> str:
    """Text as HTML, safe between tags and inside quotes, whatever it holds.

    Example:
        >>> markup("<b>'&")
        '&lt;b&gt;&#x27;&amp;'
    """
    # A lone surrogate cannot be written to a file; as a reference it can, and browsers show the replacement character.
    return html.escape(str(text)).encode("utf-8", "xmlcharrefreplace").decode("utf-8")


def snippet(plan: PlanParts | NoPlan) -> str:
    """A plan in a notebook: the verdict, devices, the strip, what to do.

    Args:
        plan: the plan, or where there is none, how far it got.

    Returns:
        HTML without script, style sheet or identifiers, so that many can stand in one page.
    """
    screen = first_screen(plan, is_shell=False)
    head = f"<p><b>{markup(screen.name)}</b> {markup(screen.facts)}<br><b>{markup(screen.verdict)}</b></p>"
    below = f"{advice_list(screen)}{notices_list(screen)}"
    return (
        f'<div class="planner-plan">{head}{devices_table(screen.devices)}{strip_picture(screen)}{below}</div>'
    )


def devices_table(lines: Iterable[DeviceLine]) -> str:
    """A line for each device, accelerators on one scale.

    Args:
        lines: devices in words.

    Returns:
        HTML whose classes a style sheet may use; without one, it has the colours of every picture.
    """
    rows = list(lines)
    classes = device_classes([line.device.id for line in rows])
    largest = max(
        (line.device.budget_bytes or 0 for line in rows if line.device.kind == "accelerator"), default=0
    )
    bodies = "".join(_device_row(line, name, largest) for line, name in zip(rows, classes, strict=True))
    return f'<table class="devices"><tbody>{bodies}</tbody></table>'


def strip_picture(screen: FirstScreen) -> str:
    """The strip in the order of execution, and a list that says it in words."""
    if not screen.strip:
        return ""
    homes = list(
        dict.fromkeys([line.device.id for line in screen.devices] + [piece.home for piece in screen.strip])
    )
    names = dict(zip(homes, device_classes(homes), strict=True))
    weights = [piece.count if piece.size_bytes is None else piece.size_bytes for piece in screen.strip]
    shares = [max(100 * weight / (sum(weights) or 1), _LEAST_PERCENT) for weight in weights]
    rects, left = [], 0.0
    for piece, share in zip(screen.strip, shares, strict=True):
        width = 100 * share / sum(shares)
        name = names[piece.home]
        rects.append(
            f'<rect class="{name}" x="{left:.3f}%" y="0" width="{width:.3f}%" height="100%" fill="{DEVICE_COLOURS[name]}" '
            f'stroke="white"><title>{_piece_words(piece)}</title></rect>'
        )
        left += width
    items = "".join(f"<li>{_piece_words(piece)}</li>" for piece in screen.strip)
    return (
        '<div class="strip"><p>in the order of execution</p>'
        f'<svg role="img" aria-label="Blocks in the order of execution" width="100%" height="22">{"".join(rects)}</svg>'
        f"<details><summary>as a list</summary><ol>{items}</ol></details></div>"
    )


def advice_list(screen: FirstScreen) -> str:
    """What to do."""
    rows = (
        f"<dt>{markup(each.aim)}</dt><dd>{markup(', or '.join(each.ways))}</dd>" for each in screen.advice
    )
    return f'<dl class="advice">{"".join(rows)}</dl>' if screen.advice else ""


def notices_list(screen: FirstScreen, further: Iterable[str] = ()) -> str:
    """What should not be missed."""
    items = [f'<li class="{notice.kind}">{markup(notice.text)}</li>' for notice in screen.notices]
    items += [f'<li class="hint">{markup(text)}</li>' for text in further]
    return f'<ul class="notices">{"".join(items)}</ul>' if items else ""


def _piece_words(piece: Piece) -> str:
    return markup(f"{piece.label}: {place_words(piece)}")


def _device_row(line: DeviceLine, class_name: str, largest_bytes: int) -> str:
    device = line.device
    place = markup(place_name(device.id))
    card = f" <small>{markup(device.name)}</small>" if device.name else ""
    left = f"{line.left}: {line.remark}" if line.remark else line.left
    scale = 1.0
    if device.kind == "accelerator" and largest_bytes:
        scale = (device.budget_bytes or 0) / largest_bytes
    return (
        f'<tr class="{class_name}" data-device="{markup(device.id)}"><th scope="row">{place}{card}</th>'
        f'<td><data value="{markup(device.budget_bytes)}">{markup(line.budget)}</data></td>'
        f"<td>{_bar(line, class_name, scale)}</td>"
        f'<td><data value="{markup(device.used_bytes)}">{markup(line.percent)}</data></td><td>{markup(left)}</td></tr>'
    )


def _bar(line: DeviceLine, class_name: str, scale: float) -> str:
    device, colour = line.device, DEVICE_COLOURS[class_name]
    rects, start = [], 0.0
    for segment in segments(device):
        width = segment.share * 100 * scale
        if width:
            rects.append(
                f'<rect class="{segment.part}" x="{start:.3f}%" y="0" width="{width:.3f}%" height="100%" '
                f'fill="{colour}" fill-opacity="{_OPACITY[segment.part]}"/>'
            )
        start += width
    return (
        f'<svg class="bar" role="img" aria-label="{markup(bar_words(device))}" width="{_BAR_PIXELS}" height="16">'
        f'{"".join(rects)}<rect class="frame" x="0" y="0" width="{100 * scale:.3f}%" height="100%" fill="none" '
        f'stroke="{colour}"/></svg>'
    )
