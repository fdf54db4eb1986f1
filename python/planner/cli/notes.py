"""Notes that put every number of bytes in doubt, as commands print them."""

from __future__ import annotations

from collections.abc import Iterable

from planner.cli.output import write
from planner.plans.parts import doubts


def write_notes(notes: Iterable[str]) -> None:
    """Of notes, those that put every number of bytes in doubt, each in a line, as plans show them."""
    for note in doubts(notes):
        write(f"! {note}")


def noted(notes: Iterable[str]) -> dict[str, object]:
    """The same for JSON; nothing where there is no doubt."""
    found = doubts(notes)
    return {"notes": list(found)} if found else {}
