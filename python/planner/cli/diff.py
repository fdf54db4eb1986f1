"""`planner diff`: what two plans place differently."""

from __future__ import annotations

from planner.cli.arguments import Json, PlanFile
from planner.cli.exits import NEGATIVE, OK
from planner.cli.files import read_plan
from planner.cli.output import noted, write, write_json, write_notes


def command(left: PlanFile, right: PlanFile, as_json: Json = False) -> int:
    """List what two plans place differently.

    Names, then bytes by device. Exit code 1 if there is anything.
    """
    plans = read_plan(left), read_plan(right)
    found = plans[0].diff(plans[1])
    notes = tuple(dict.fromkeys(note for plan in plans for note in plan.source.notes))
    if as_json:
        write_json({"differs": bool(found), **found.to_data(), **noted(notes)})
    elif found:
        write(str(found))
        write_notes(notes)
    return NEGATIVE if found else OK
