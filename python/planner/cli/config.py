"""`planner config`: which settings count, where each was said, and where they are looked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import click

from planner.cli.arguments import json_option
from planner.cli.exits import OK
from planner.cli.output import write, write_json
from planner.cli.parsing import Argument, Command, given_options
from planner.cli.settings import settings_of, takes_settings
from planner.config.layer import UPDATE
from planner.config.stack import COMMAND_FILES
from planner.errors import InvalidInputError


@click.group(invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Show settings, and where each was said."""
    if context.invoked_subcommand is None:
        write(context.get_help())


@command.command("show", cls=Command)
@click.option("--all", "everything", is_flag=True, help="Defaults, too.")
@json_option
@takes_settings
@click.pass_context
def _show(context: click.Context, everything: bool, as_json: bool) -> int:
    """Print the settings that files, environment and options say, as a YAML file that says the same."""
    resolved = settings_of(context).resolve()
    level: Literal["all", "said"] = "all" if everything else "said"
    if as_json:
        values = resolved.dump(level=level)
        origins = {".".join(map(str, path)): resolved.origin_text(path) for path, _ in _leaves(values)}
        write_json({"settings": values, "origins": origins})
    else:
        write(resolved.yaml(level=level) or "# nothing is said: all settings have their defaults")
    return OK


@command.command("explain", cls=Command)
@click.argument("path", cls=Argument, metavar="PATH", about="A setting, such as max_memory.0.")
@json_option
@takes_settings
@click.pass_context
def _explain(context: click.Context, path: str, as_json: bool) -> int:
    """Say where a setting comes from, and what it shadowed."""
    resolved = settings_of(context).resolve()
    try:
        text = resolved.explain(path)
    except KeyError as error:
        raise InvalidInputError(str(error.args[0]), path=path) from error
    if as_json:
        write_json({"path": path, "text": text})
    else:
        write(text)
    return OK


@command.command("path", cls=Command)
@json_option
@takes_settings
@click.pass_context
def _path(context: click.Context, as_json: bool) -> int:
    """List where settings are looked for, the lowest first."""
    files = [
        {"file": file, "said_by": said_by, "exists": os.path.exists(file)}
        for file, said_by in _files(context)
    ]
    variables = sorted(
        name
        for name in os.environ
        if name.upper().startswith("PLANNER_") and name.upper() != "PLANNER_CONFIG"
    )
    if as_json:
        write_json({"files": files, "variables": variables})
        return OK
    for row in files:
        absent = "" if row["exists"] else ", not there"
        write(f"{row['file']}  ({row['said_by']}{absent})")
    for name in variables:
        write(f"{name}  (environment)")
    return OK


def _files(context: click.Context) -> Iterator[tuple[str, str]]:
    for name in COMMAND_FILES:
        if name == COMMAND_FILES[0] or os.path.exists(name):
            yield name, "looked for in this folder"
    for name, file in os.environ.items():
        if name.upper() == "PLANNER_CONFIG":
            yield file, f"environment {name}"
    for option in given_options(context):
        if option.name == "config":
            yield option.text, "option --config"


def _leaves(values: Mapping[Any, Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, key))
        elif key != UPDATE:
            yield (*path, key), value
