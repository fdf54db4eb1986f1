"""Names with their numbers left out, so that what is done to a thousand layers' names is done once."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

GAP = "\0"
"""What stands for a number that is a whole part of a name."""
MOST_GAPS = 1000
"""A name may have fewer than so many numbers."""

_PART_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")


def general_name(name: str, gap: str = GAP) -> str:
    """The name with each number between dots left out.

    Example:
        >>> general_name("model.layers.3.conv1.weight", "*")
        'model.layers.*.conv1.weight'
    """
    return _PART_NUMBER.sub(gap, name)


def part_numbers(name: str) -> list[str]:
    """Those numbers."""
    return _PART_NUMBER.findall(name)


def unused_number(names: Collection[str]) -> str:
    """A number that is in no name, as the beginning of the numbers that stand for places."""
    number = 90817
    while any(str(number) in name for name in names):
        number += 1
    return str(number)


def marked(general: str, marker: str) -> str:
    """A general name with numbers that say which place they are in, for expressions that want numbers."""
    first, *rest = general.split(GAP)
    return first + "".join(f"{marker}{place:03d}{text}" for place, text in enumerate(rest))


def template(name: str, marker: str) -> str:
    """What became of a marked name, with each place between gaps."""
    return GAP.join(re.split(f"{marker}([0-9]{{3}})", name))


def unchanged(general: str) -> str:
    """The template of a name that stays as it is."""
    first, *rest = general.split(GAP)
    return first + "".join(f"{GAP}{place}{GAP}{text}" for place, text in enumerate(rest))


def filled(text: str, numbers: Sequence[str]) -> str:
    """A template with the numbers of one name."""
    parts = text.split(GAP)
    return "".join(numbers[int(part)] if place % 2 else part for place, part in enumerate(parts))
