"""`planner sizes`: how many bytes each part of a model has."""

from __future__ import annotations

import click

from planner.cli.arguments import example_option, json_option, model_argument, remote_option
from planner.cli.exits import OK
from planner.cli.notes import noted, write_notes
from planner.cli.output import show_table, write_json
from planner.cli.parsing import Command
from planner.cli.sources import open_model
from planner.errors import InvalidInputError
from planner.model.tree import ModuleTree
from planner.planning.formats import loaded_as
from planner.settings.schema import read_dtype
from planner.units import format_bytes


@click.command(cls=Command)
@model_argument
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    default=2,
    metavar="LEVELS",
    help="Levels of names that are listed; 2 without it.",
)
@click.option("--dtype", metavar="DTYPE", help="What the weights will be loaded as.")
@example_option
@remote_option
@json_option
def command(
    model: str | None, depth: int, dtype: str | None, example: str | None, remote: bool, as_json: bool
) -> int:
    """List bytes by module.

    As they are stored; a shared tensor counts where it is met first.
    """
    opened = open_model(model, example, remote=remote)
    layout, opened = loaded_as(opened, None if dtype is None else _dtype(dtype))
    tree, sizes = opened.tree, layout.stored_sizes()
    total_bytes = sizes.get("", 0)  # a model without a tensor has no sizes at all
    shown = {name: sizes.get(name, 0) for name in _names(tree) if name.count(".") < depth}
    if as_json:
        write_json({"total_bytes": total_bytes, "sizes": shown, **noted(opened.notes)})
        return OK
    rows = [
        (name, format_bytes(size), f"{100 * size / (total_bytes or 1):.1f} %") for name, size in shown.items()
    ]
    rows.append(("the model", format_bytes(total_bytes), "100.0 %"))
    show_table(("module", "bytes", "share"), rows, right=("bytes", "share"))
    write_notes(opened.notes)
    return OK


def _names(tree: ModuleTree) -> list[str]:
    """Modules in execution order, and tensors that lie in none."""
    loose = [name for name in tree.uncovered([])[1] if "." not in name]
    return [*loose, *(name for name, _ in tree.columns.module_classes())]


def _dtype(text: str) -> str:
    try:
        return read_dtype(text)
    except ValueError as error:
        raise InvalidInputError(f"--dtype {text}: {error}", option="--dtype", text=text) from error
