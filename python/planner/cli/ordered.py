"""A command that remembers in which order its options came, since later ones win over earlier ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand

from planner.cli.verbatim import keep_as_written

_KEY = "planner.options"


@dataclass(frozen=True, slots=True)
class GivenOption:
    """One option as it came: the parameter's name and its text."""

    name: str
    text: str


class OrderedCommand(TyperCommand):
    """A command whose repeated options can be read in the order in which they came, across options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        keep_as_written(self.get_params(ctx))
        # The parser itself tells what it took for an option and what for a value, so nothing can be read differently here.
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_KEY] = tuple(_in_order(values, order))
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments and options, each with the form of its value."""
        for heading, kind in (("Arguments", "argument"), ("Options", "option")):
            shown = [each for each in self.get_params(ctx) if each.param_type_name == kind]
            rows = [(_usage_of(each), getattr(each, "help", "") or "") for each in shown]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def _in_order(values: dict[str, Any], order: list[Any]) -> Iterator[GivenOption]:
    waiting = {name: deque(value) for name, value in values.items() if isinstance(value, list)}
    for parameter in order:
        if parameter.name in waiting:
            yield GivenOption(parameter.name, waiting[parameter.name].popleft())


def _usage_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    flags = ", ".join(parameter.opts)
    return flags if parameter.is_flag else f"{flags} {parameter.metavar or parameter.name.upper()}"


def given_options(context: typer.Context) -> tuple[GivenOption, ...]:
    """The repeatable options of an :class:`OrderedCommand`, as they came."""
    options: tuple[GivenOption, ...] = context.meta.get(_KEY, ())
    return options
