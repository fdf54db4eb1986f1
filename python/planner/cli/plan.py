"""`planner plan`: where a model goes."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from planner.checkpoint.source import Opened
from planner.cli.arguments import example_option, json_option, model_argument, remote_option
from planner.cli.exits import OK
from planner.cli.files import STANDARD_STREAM, write_file
from planner.cli.fleet import plan_fleet
from planner.cli.output import json_text, show, write_json_text, write_remark
from planner.cli.parsing import FILE, Command, given_options
from planner.cli.settings import SettingsStack, remark_file, settings_of, takes_settings
from planner.cli.sources import open_model
from planner.cli.waiting import saying
from planner.devices.absence import no_accelerator
from planner.devices.nodes import node_of
from planner.errors import InfeasibleError, InvalidInputError
from planner.planning import plan
from planner.plans.no_plan import NoPlan
from planner.plans.plan import Plan
from planner.settings.schema import Settings


@click.command(cls=Command)
@model_argument
@click.option(
    "-o", "--output", type=FILE, metavar="FILE", help="Write the plan, as JSON; - is standard output."
)
@click.option(
    "--device-map",
    type=FILE,
    metavar="FILE",
    help="Write its device map alone, as JSON; - is standard output.",
)
@click.option("--html", type=FILE, metavar="FILE", help="Write a picture that a browser shows.")
@click.option(
    "--budgets",
    type=FILE,
    metavar="FILE",
    help='Plan once for each line of a file of JSON objects such as {"0": "80GiB"}; - is standard input. '
    "Exit code 1 if any has no plan.",
)
@example_option
@remote_option
@json_option
@takes_settings
@click.pass_context
def command(
    context: click.Context,
    model: str | None,
    output: str | None,
    device_map: str | None,
    html: str | None,
    budgets: str | None,
    example: str | None,
    remote: bool,
    as_json: bool,
) -> int:
    """Decide where each module of a model goes.

    Exit code 1, with what would be enough, if it does not fit.
    """
    _refuse_two_answers(as_json, output, device_map, html)
    stack = settings_of(context)
    remark_file()
    if budgets is not None:
        if html or device_map or any(option.name == "device" for option in given_options(context)):
            raise InvalidInputError(
                "--budgets names the devices of many plans; leave out -d, --html and --device-map"
            )
        return plan_fleet(open_model(model, example, remote=remote), stack, budgets, output, as_json=as_json)
    opened = open_model(model, example, remote=remote)
    has_devices = _names_devices(stack.resolve().config)
    try:
        with saying("planning" if has_devices else "importing torch, to find accelerators, and planning"):
            made = plan(opened, config=stack)
    except InfeasibleError as error:
        is_drawn = not as_json and STANDARD_STREAM not in (output, device_map, html)
        _draw_no(error, opened, stack, html, () if has_devices else _remarks(), is_drawn=is_drawn)
        raise
    if device_map is not None and any(node_of(each) for each in made.device_map.values()):
        raise InvalidInputError(
            "--device-map is for one process, and this plan is for devices of several computers: leave it out; -o writes the plan"
        )
    remarks = () if has_devices else _remarks()
    if output is not None:
        _write(output, made.to_json(), "the plan")
    if device_map is not None:
        _write(device_map, json_text(made.device_map), "its device map")
    if html is not None:
        _write(html, _page(made, opened, remarks), "its report")
    if as_json:
        write_json_text(made.to_json())
    elif STANDARD_STREAM not in (output, device_map, html):
        _show(made, remarks)
    return OK


def _names_devices(settings: Settings) -> bool:
    """Whether it is said which devices there are: by budgets, or by a machine of several computers."""
    if settings.max_memory or settings.machine is None:
        return bool(settings.max_memory)
    from planner.planning.computers import (
        memory_of_computers,
    )  # few plans are for a machine that is not this one

    return bool(memory_of_computers(settings))


def _remarks() -> tuple[str, ...]:
    """What a picture should not keep back where no device was named: that there is no accelerator, and why."""
    absence = no_accelerator()
    return () if absence is None else (absence,)


def _draw_no(
    error: InfeasibleError,
    opened: Opened,
    stack: SettingsStack,
    html: str | None,
    remarks: Sequence[str],
    *,
    is_drawn: bool,
) -> None:
    """How far the best attempt got, and what would make it fit; the error itself is told by who gets it."""
    if html is None and not is_drawn:
        return
    from planner.planning.partial import partial_plan

    attempt = partial_plan(error, opened, config=stack)
    if html is not None:
        _write(html, _page(attempt, opened, remarks), "a report of what is left over")
    if is_drawn:
        _show(attempt, remarks)


def _refuse_two_answers(as_json: bool, *files: str | None) -> None:
    if as_json + files.count(STANDARD_STREAM) > 1:
        raise InvalidInputError("standard output takes one answer: of --json and of options with -, give one")
    places = [os.path.abspath(file) for file in files if file not in (None, STANDARD_STREAM)]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise InvalidInputError(
            f"{twice} would be written twice: give each answer a file of its own", file=twice
        )


def _write(file: str, text: str, what: str) -> None:
    """Writes a file that was asked for, and says so."""
    write_file(file, f"{text}\n")
    if file != STANDARD_STREAM:
        write_remark(f"wrote {what} to {file}")


def _page(made: Plan | NoPlan, opened: Opened, remarks: Sequence[str]) -> str:
    from planner.report.html import html_report

    return html_report(made, opened.tree, remarks=remarks)


def _show(made: Plan | NoPlan, remarks: Sequence[str]) -> None:
    from planner.report.terminal import plan_view

    show(plan_view(made, remarks=remarks))
