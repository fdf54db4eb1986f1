"""What colours and characters mean in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from planner.devices.keys import DeviceKey
from planner.plans.bars import Part, device_classes

__all__ = ["PART_CHARACTERS", "device_styles", "visible"]

# Basic colours: the terminal's own palette keeps them legible on its background.
_STYLES = {"cpu": "yellow", "disk": "red"}
_ACCELERATOR_STYLES = ("cyan", "magenta", "green", "blue")

_ASCII = str.maketrans({"→": "->", "×": "x"})

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


def visible(text: str, *, is_ascii: bool = False) -> str:
    """Text with what a terminal would obey, or could not show, spelled out.

    Args:
        text: a name, or a line of ours.
        is_ascii: the terminal knows nothing but ASCII.

    Example:
        >>> visible("a\\x1b[31m\\u202eb"), visible("größe")
        ('a\\\\x1b[31m\\\\u202eb', 'größe')
        >>> visible("größe → 0", is_ascii=True)
        'gr\\\\xf6\\\\xdfe -> 0'
    """
    plain = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    if not is_ascii:
        return plain
    return plain.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
