"""`planner demo`: what the command does, where no model is at hand."""

from __future__ import annotations

import os
import shlex
import tempfile

import click

from planner.cli import explain, fit, plan
from planner.cli.exits import OK
from planner.cli.output import write
from planner.cli.parsing import FILE, Command
from planner.cli.synthetic import EXAMPLES

BUDGETS = {0: "80GiB", 1: "24GiB", "cpu": "200GiB"}
"""Two unlike cards, which is what accelerate plans worst."""

_EXPLAINED = "model.layers.50"


@click.command(cls=Command)
@click.option(
    "--folder",
    type=FILE,
    metavar="FOLDER",
    help="Where the plan and its report are written; a new temporary folder without it.",
)
def command(folder: str | None) -> int:
    """Plan a made-up Llama-70B, explain it, write its report, and find the longest context that fits.

    Each step is a command that can be typed as it is printed. Of the model there are headers only, no weights.
    """
    place = tempfile.mkdtemp(prefix="planner-demo-") if folder is None else folder
    os.makedirs(place, exist_ok=True)
    (example, *_) = EXAMPLES
    saved, page = (os.path.join(place, f"{example}.{kind}") for kind in ("json", "html"))
    _run(plan.command, "plan", "--example", example, *_devices(), "-o", saved, "--html", page)
    _run(explain.command, "explain", saved, _EXPLAINED)
    _run(fit.command, "fit", "--example", example, *_devices())
    return OK


def _devices() -> list[str]:
    return [word for device, size in BUDGETS.items() for word in ("-d", f"{device}={size}")]


def _run(step: click.Command, *words: str) -> None:
    write(f"$ planner {shlex.join(words)}")
    name, *arguments = words
    with step.make_context(name, arguments) as context:
        step.invoke(context)
    write("")
