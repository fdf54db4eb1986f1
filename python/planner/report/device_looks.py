"""How each device looks in a terminal: its colour and, for those who see none, its pattern."""

from __future__ import annotations

from collections.abc import Sequence

from planner.devices.keys import DeviceKey
from planner.plans.bars import Part, device_classes
from planner.plans.colours import DEVICE_COLOURS
from planner.spelling import one_line

__all__ = ["PART_CHARACTERS", "device_characters", "device_styles", "shown"]

# Blocks that every font has, one column wide; the second is for terminals with nothing but ASCII.
_CHARACTERS = {
    **{
        f"a{number}": pair
        for number, pair in enumerate(zip("█▓▚▀▞▌▙▄▐▜▛▆▟▖▝▘", "#@%&$*+xo8WMXZKN", strict=True))
    },
    "cpu": ("░", ":"),
    "disk": ("▁", "_"),
    "rest": ("?", "?"),
}
PART_CHARACTERS: dict[Part, tuple[str, str]] = {
    "used": ("█", "#"),
    "buffers": ("▪", "b"),
    "cache": ("◆", "c"),
    "activations": ("◇", "a"),
    "margin": ("~", "~"),
    "reserved": ("▒", "="),
    "headroom": ("╱", "/"),
    "free": ("·", "."),
}
_ASCII = str.maketrans({"→": "->", "×": "x", "–": "-"})


def device_styles(ids: Sequence[DeviceKey]) -> tuple[str, ...]:
    """The colour of each device; after sixteen accelerators they come again.

    Example:
        >>> device_styles([0, 1, "cpu"])
        ('#2f6fc4', '#d145c1', '#946d00')
    """
    return tuple(DEVICE_COLOURS[name] for name in device_classes(ids))


def device_characters(ids: Sequence[DeviceKey], *, is_ascii: bool = False) -> tuple[str, ...]:
    """What each device's blocks are drawn with.

    Example:
        >>> device_characters([0, 1, "cpu"]), device_characters([0, 1, "cpu"], is_ascii=True)
        (('█', '▓', '░'), ('#', '@', ':'))
    """
    return tuple(_CHARACTERS[name][is_ascii] for name in device_classes(ids))


def shown(text: str, *, is_ascii: bool = False) -> str:
    """Text with what a terminal would obey, or could not show, spelled out.

    Args:
        text: a name, or a line of ours.
        is_ascii: the terminal knows nothing but ASCII.

    Example:
        >>> shown("a\\x1b[31m\\u202eb"), shown("größe")
        ('a\\\\x1b[31m\\\\u202eb', 'größe')
        >>> shown("größe → 0", is_ascii=True)
        'gr\\\\xf6\\\\xdfe -> 0'
    """
    plain = one_line(text)
    if not is_ascii:
        return plain
    return plain.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
