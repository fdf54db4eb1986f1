"""`planner plan`: where a model goes."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.checkpoint.source import open_source
from planner.cli.arguments import Json, Remote, SourcePath
from planner.cli.exits import OK
from planner.cli.files import write_file
from planner.cli.fleet import plan_fleet
from planner.cli.output import show, write_json_text
from planner.cli.parsing import given_options
from planner.cli.settings import remark_file, settings_of, takes_settings
from planner.errors import InvalidInputError
from planner.model.tree import ModuleTree
from planner.planning import plan
from planner.plans.plan import Plan


@takes_settings
def command(
    context: typer.Context,
    model: SourcePath,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="Write the plan, as JSON.")
    ] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write a picture that a browser shows.")
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            "--budgets",
            metavar="FILE",
            help="Plan once for each line of a file of JSON objects such as "
            '{"0": "80GiB"}; - is standard input. Prints one line of JSON for each; '
            "exit code 1 if any has no plan.",
        ),
    ] = None,
    remote: Remote = False,
    as_json: Json = False,
) -> int:
    """Decide where each module of a model goes.

    Exit code 1, with what would be enough, if it does not fit.
    """
    stack = settings_of(context)
    remark_file()
    if budgets is not None:
        if html is not None or any(option.name == "device" for option in given_options(context)):
            raise InvalidInputError("--budgets names the devices of many plans; leave out -d and --html")
        return plan_fleet(open_source(model, remote=remote), stack, budgets, output)
    opened = open_source(model, remote=remote)
    made = plan(opened, config=stack)
    text = made.to_json()
    if output is not None:
        write_file(output, f"{text}\n")
    if html is not None:
        write_file(html, _page(made, opened.tree))
    if as_json:
        write_json_text(text)
    else:
        _show(made, opened.tree)
    return OK


def _page(made: Plan, tree: ModuleTree) -> str:
    from planner.report.html import html_report

    return html_report(made, tree)


def _show(made: Plan, tree: ModuleTree) -> None:
    from planner.report.terminal import plan_view

    show(plan_view(made, tree))
