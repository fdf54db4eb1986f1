"""`planner sizes`: how many bytes each part of a model has."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli.arguments import Json, SourcePath
from planner.cli.exits import OK
from planner.cli.output import show_table, write_json
from planner.cli.sources import open_source
from planner.config.settings import read_dtype
from planner.errors import InvalidInputError
from planner.layout import Layout
from planner.units import format_bytes

__all__ = ["command"]


def command(
    model: SourcePath,
    depth: Annotated[
        int, typer.Option("--depth", min=0, metavar="LEVELS", help="Levels of names that are listed.")
    ] = 2,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="DTYPE", help="What the weights will be loaded as.")
    ] = None,
    as_json: Json = False,
) -> int:
    """List bytes by module: as they are stored, a shared tensor where it is met first."""
    layout = Layout(open_source(model), dtype=None if dtype is None else _dtype(dtype))
    sizes = layout.stored_sizes()
    shown = {name: size for name, size in sizes.items() if name and name.count(".") < depth}
    if as_json:
        write_json({"total_bytes": sizes[""], "sizes": shown})
        return OK
    total = sizes[""] or 1
    rows = [("(the model)", format_bytes(sizes[""]), "100 %")]
    rows += [(name, format_bytes(size), f"{100 * size / total:.1f} %") for name, size in shown.items()]
    show_table(("name", "bytes", "share"), rows, right=("bytes", "share"))
    return OK


def _dtype(text: str) -> str:
    try:
        return read_dtype(text)
    except ValueError as error:
        raise InvalidInputError(f"--dtype {text}: {error}", option="--dtype", text=text) from error
