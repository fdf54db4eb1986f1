"""`planner explain`: why a module lies where it lies."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli.arguments import Json, PlanFile
from planner.cli.exits import OK
from planner.cli.files import read_plan
from planner.cli.output import noted, write, write_json
from planner.plans.wording import explain, first_device_of, reasons_about


def command(
    plan: PlanFile,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A module or tensor of the model.", show_default=False)
    ],
    as_json: Json = False,
) -> int:
    """Say where a module lies, why, and what would move it."""
    made = read_plan(plan)
    text = explain(made, name)
    if not as_json:
        write(text)
        return OK
    write_json(
        {
            "name": name,
            "device": first_device_of(made.device_map, name),
            "runs_on": first_device_of(made.execution_map, name),
            "reasons": reasons_about(made, name),
            "text": text,
            **noted(made.source.notes),
        }
    )
    return OK
