"""The command line as it was written: texts without typer's conversion, which loads pydantic, and options in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

_KEY: Final = "planner.options"
_TEXTS: Final = (str, list[str], bool)


class _AsWritten:
    """Stands where typer has its conversion of a parameter's value."""

    def coerce(self, value: Any, param: Any, **_: Any) -> Any:
        """The value; nothing at all for a repeatable option that was not given."""
        return () if value is None and param.multiple else value


def _keep_as_written(parameters: Iterable[Any]) -> None:
    """Lets parameters that are texts, lists of texts or flags be taken as they were written.

    Guarantee: a command sees the same values; typer's conversion of a text to a text changes nothing.

    Cost: saves the import of pydantic, a tenth of a second in the start of every command.
    """
    for parameter in parameters:
        if getattr(getattr(parameter, "type_descriptor", None), "annotation", None) in _TEXTS:
            parameter.get_runtime_param = _AsWritten


class VerbatimGroup(TyperGroup):
    """A group of commands whose own options are taken as they were written."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _keep_as_written(self.get_params(ctx))
        return super().parse_args(ctx, args)


@dataclass(frozen=True, slots=True)
class GivenOption:
    """One option as it came: the parameter's name and its text."""

    name: str
    text: str


class OrderedCommand(TyperCommand):
    """A command whose repeated options can be read in the order in which they came, across options: later ones win over earlier ones."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _keep_as_written(self.get_params(ctx))
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
