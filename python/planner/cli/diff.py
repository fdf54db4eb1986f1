"""`planner diff`: what two plans place differently."""

from __future__ import annotations

from planner.cli.arguments import Json, PlanFile
from planner.cli.exits import NEGATIVE, OK
from planner.cli.files import read_plan
from planner.cli.output import write, write_json

__all__ = ["command"]


def command(left: PlanFile, right: PlanFile, as_json: Json = False) -> int:
    """List what two plans place differently.

    Names, then bytes by device. Exit code 1 if there is anything.
    """
    found = read_plan(left).diff(read_plan(right))
    if as_json:
        write_json({"differs": bool(found), **found.to_data()})
    elif found:
        write(str(found))
    return NEGATIVE if found else OK
