"""`planner diff`: what two plans place differently."""

from __future__ import annotations

import click

from planner.cli.arguments import ABOUT_PLANS, json_option
from planner.cli.exits import NEGATIVE, OK
from planner.cli.files import read_plan
from planner.cli.notes import noted, write_notes
from planner.cli.output import write, write_json
from planner.cli.parsing import FILE, Argument, Command


@click.command(cls=Command)
@click.argument("left", cls=Argument, type=FILE, metavar="PLAN", about=ABOUT_PLANS)
@click.argument("right", cls=Argument, type=FILE, metavar="PLAN", about="The other one.")
@json_option
def command(left: str, right: str, as_json: bool) -> int:
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
