"""A device's budget as the bar that every picture draws: weights, cache, activations, margin, reserved, headroom, free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from planner.plans.parts import DevicePlan
from planner.plans.places import LEFT_OVER
from planner.units import format_bytes

__all__ = ["PARTS", "Part", "Segment", "bar_words", "device_classes", "segments"]

Part = Literal["used", "buffers", "cache", "activations", "margin", "reserved", "headroom", "free"]
PARTS: tuple[Part, ...] = (
    "used",
    "buffers",
    "cache",
    "activations",
    "margin",
    "reserved",
    "headroom",
    "free",
)
_AT_TIMES: tuple[Part, ...] = ("buffers", "cache", "activations", "margin")
_ACCELERATOR_COLOURS = 16


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a bar.

    Args:
        part: which.
        size_bytes: its bytes; None is without limit.
        share: its share of the bar, from 0 to 1.
    """

    part: Part
    size_bytes: int | None
    share: float


def segments(device: DevicePlan) -> tuple[Segment, ...]:
    """The parts of a device's bar, in the order of ``PARTS``; those of a workload only where the device has them.

    Guarantee: bytes are the plan's; shares add up to 1, or to 0 for a device without any byte. Free room without limit
        has no share: there is nothing to measure it by.

    Example:
        >>> device = DevicePlan(id=0, kind="accelerator", pool=None, budget_bytes=100, headroom_bytes=10,
        ...                     used_bytes=50, reserved_bytes=15, free_bytes=25, origin="user")
        >>> [(segment.part, segment.share) for segment in segments(device)]
        [('used', 0.5), ('reserved', 0.15), ('headroom', 0.1), ('free', 0.25)]
    """
    sizes = {
        "used": device.used_bytes,
        "buffers": device.buffer_bytes,
        "cache": device.cache_bytes,
        "activations": device.activation_bytes,
        "margin": device.margin_bytes,
        "reserved": device.reserved_bytes,
        "headroom": device.headroom_bytes,
        "free": device.free_bytes,
    }
    whole = sum(size or 0 for size in sizes.values())
    shown = [part for part in PARTS if sizes[part] or part not in _AT_TIMES]
    return tuple(Segment(part, sizes[part], (sizes[part] or 0) / whole if whole else 0.0) for part in shown)


def bar_words(device: DevicePlan) -> str:
    """A bar for those who hear it.

    Example:
        >>> print(bar_words(DevicePlan(id="disk", kind="disk", pool=None, budget_bytes=None, headroom_bytes=0,
        ...                            used_bytes=2048, reserved_bytes=0, free_bytes=None, origin="user")))
        disk: 2.00 KiB used, 0 B reserved, 0 B headroom, no limit
    """
    parts = [
        f"{format_bytes(segment.size_bytes)} {segment.part}"
        for segment in segments(device)
        if segment.size_bytes is not None
    ]
    if device.budget_bytes is None:
        parts.append("no limit")
    return f"{device.id}: {', '.join(parts)}"


def device_classes(ids: Sequence[int | str]) -> tuple[str, ...]:
    """What decides each device's colour: its kind, and for accelerators their order.

    Example:
        >>> device_classes([0, 3, "cpu", "disk"])
        ('a0', 'a1', 'cpu', 'disk')
    """
    classes: list[str] = []
    accelerators = 0
    for each in ids:
        if each in ("cpu", "disk", LEFT_OVER):
            classes.append("rest" if each == LEFT_OVER else str(each))
        else:
            classes.append(f"a{accelerators % _ACCELERATOR_COLOURS}")
            accelerators += 1
    return tuple(classes)
