"""What colours and characters mean in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from planner.device_bar import Part, device_classes
from planner.devices import DeviceKey

__all__ = ["PART_CHARACTERS", "device_styles", "visible"]

# Basic colours: the terminal's own palette keeps them legible on its background.
_STYLES = {"cpu": "yellow", "disk": "red"}
_ACCELERATOR_STYLES = ("cyan", "magenta", "green", "blue")

# By part: the character in a terminal that can draw, and in one that cannot.
PART_CHARACTERS: dict[Part, tuple[str, str]] = {
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


def visible(text: str) -> str:
    """Text with what a terminal would obey, or could not show, spelled out.

    Example:
        >>> visible("a\\x1b[31m\\u202eb"), visible("größe")
        ('a\\\\x1b[31m\\\\u202eb', 'größe')
    """
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
