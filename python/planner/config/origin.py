"""Where a value was said, and with which authority."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Origin", "Place", "Rank"]


class Rank(enum.IntEnum):
    """Who said a value. A higher rank wins; a derived value has no rival, since nobody else may say it."""

    DEFAULT = 0
    COMPUTED = 1
    IMPORTED = 2
    USER = 3
    DERIVED = 4


class Place(enum.IntEnum):
    """In which way the user said it. Within the rank ``USER`` a higher place wins."""

    FILE = 0
    ENVIRONMENT = 1
    ARGUMENTS = 2
    KEYWORDS = 3


@dataclass(frozen=True, slots=True)
class Origin:
    """One place where a value was said.

    Args:
        rank: who said it.
        where: the place in words: ``plan.yaml:3:12``, ``environment PLANNER_DTYPE``, ``settings.py:40``.
        note: what it was translated or computed from, if it was.

    Example:
        >>> str(Origin(Rank.IMPORTED, "config.json:4", "from n_layer = 12"))
        'imported · config.json:4 (from n_layer = 12)'
    """

    rank: Rank
    where: str
    note: str = ""

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.rank.name.lower()} · {self.where}{note}"
