"""`planner fit`: the largest context or batch that devices have room for."""

from __future__ import annotations

import click

from planner.cli.arguments import example_option, json_option, model_argument, remote_option
from planner.cli.exits import OK
from planner.cli.output import write, write_json
from planner.cli.parsing import Command
from planner.cli.settings import remark_file, settings_of, takes_settings
from planner.cli.sources import open_model
from planner.cli.waiting import saying


def _count(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A count as a context is written: k is 1024."""
    from planner.settings.workload import read_tokens

    try:
        return None if value is None else read_tokens(value)
    except ValueError:
        raise click.BadParameter(
            f"expected a count of at least 1, such as 4096 or 32k, got {value!r}", ctx, param
        ) from None


_OF = {"context": "context_length", "batch": "batch_size"}


@click.command(cls=Command)
@model_argument
@click.option(
    "--largest",
    type=click.Choice(list(_OF)),
    default="context",
    show_default=True,
    help="What is to be as large as can be; --context or --batch says the other one.",
)
@click.option(
    "--upto", callback=_count, metavar="COUNT", help="The most to ask for, such as 32k (k is 1024)."
)
@example_option
@remote_option
@json_option
@takes_settings
@click.pass_context
def command(
    context: click.Context,
    model: str | None,
    largest: str,
    upto: int | None,
    example: str | None,
    remote: bool,
    as_json: bool,
) -> int:
    """Find the largest context, or the largest batch, that fits.

    Exit code 1, with what would be enough, if not even one token or one sequence does.
    """
    from planner.planning.asking import largest as find_largest

    stack = settings_of(context)
    remark_file()
    opened = open_model(model, example, remote=remote)
    with saying("planning"):
        found = find_largest(opened, _OF[largest], upto=upto, config=stack)  # type: ignore[arg-type]
    if as_json:
        write_json({"of": found.of, "value": found.value, "limit": found.limit, "tried": found.tried})
    else:
        write(str(found))
        write(found.plan.summary())
    return OK
