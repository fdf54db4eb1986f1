"""`planner explain`: why a module lies where it lies."""

from __future__ import annotations

import click

from planner.cli.arguments import ABOUT_PLANS, json_option
from planner.cli.exits import OK
from planner.cli.files import read_plan
from planner.cli.notes import noted
from planner.cli.output import write, write_json
from planner.cli.parsing import FILE, Argument, Command
from planner.names import device_of
from planner.plans.explaining import explain
from planner.plans.runs import runs_of
from planner.plans.wording import reasons_about


@click.command(cls=Command)
@click.argument("plan", cls=Argument, type=FILE, metavar="PLAN", about=ABOUT_PLANS)
@click.argument("name", cls=Argument, metavar="NAME", about="A module or tensor of the model.")
@json_option
def command(plan: str, name: str, as_json: bool) -> int:
    """Say where a module lies, why, and what would move it."""
    made = read_plan(plan)
    text = explain(made, name, style="shell")
    if not as_json:
        write(text)
        return OK
    write_json(
        {
            "name": name,
            "device": device_of(name, made.device_map),
            "runs_on": device_of(name, made.execution_map),
            "runs": runs_of(made, name),
            "reasons": reasons_about(made, name),
            "text": text,
            **noted(made.source.notes),
        }
    )
    return OK
