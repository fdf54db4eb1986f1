"""One finding of the judge, and whether a map with findings is valid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from planner.checker.devices import Device, shown
from planner.errors import InvalidInputError

Rule = Literal[
    "uncovered",
    "tied-apart",
    "split-block",
    "split-module",
    "over-budget",
    "unequal-budget",
    "unlisted-device",
    "unknown-device",
    "unknown-key",
    "nothing-to-execute-on",
    "no-room-to-run",
    "shared-storage",
]

_NOTES: Final = frozenset({"nothing-to-execute-on", "shared-storage"})
_MOST_LISTED: Final = 5  # names in a message


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a device map, or worth a remark.

    Fields: ``rule``; ``name``: the tensor, module, key or device concerned; ``message``: the same in words;
    ``device``; ``needed_bytes`` and ``available_bytes`` (bytes, for budgets); ``names``: the other names concerned;
    ``suggestions``: nearest known names.

    Guarantee: immutable, and it holds no reference to the model.
    """

    rule: Rule
    name: str
    message: str
    device: Device | None = None
    needed_bytes: int | None = None
    available_bytes: float | None = None
    names: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()

    @property
    def is_note(self) -> bool:
        """Whether it is only a remark: the map is not invalid because of it."""
        return self.rule in _NOTES

    def __str__(self) -> str:
        return self.message


def is_valid(findings: Iterable[Finding]) -> bool:
    """Whether nothing but notes was found.

    Raises:
        InvalidInputError: these are no findings.

    Example:
        >>> is_valid(())
        True
    """
    try:
        found = list(findings)
    except TypeError:  # nothing that holds several
        raise InvalidInputError(f"expected findings of planner.check, got {shown(findings)}") from None
    if not all(isinstance(finding, Finding) for finding in found):
        raise InvalidInputError(f"expected findings of planner.check, got {shown(findings)}")
    return all(finding.is_note for finding in found)


def listed(names: list[str]) -> str:
    """Names in a message: the first few, and how many more there are."""
    rest = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {rest} more" if rest > 0 else "")
