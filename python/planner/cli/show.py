"""`planner show`: a saved plan, drawn again."""

from __future__ import annotations

import click

from planner.cli.arguments import ABOUT_PLANS, json_option
from planner.cli.exits import OK
from planner.cli.files import read_plan, write_file
from planner.cli.output import show, write_json_text
from planner.cli.parsing import FILE, Argument, Command
from planner.report.html import html_report
from planner.report.terminal import plan_view


@click.command(cls=Command)
@click.argument("plan", cls=Argument, type=FILE, metavar="PLAN", about=ABOUT_PLANS)
@click.option("--html", type=FILE, metavar="FILE", help="Write a picture that a browser shows.")
@json_option
def command(plan: str, html: str | None, as_json: bool) -> int:
    """Draw a saved plan.

    The model is not read again, so what is drawn is what the plan knows: blocks, not what lies in them.
    """
    made = read_plan(plan)
    if html is not None:
        write_file(html, html_report(made))
    if as_json:
        write_json_text(made.to_json())
    else:
        show(plan_view(made))
    return OK
