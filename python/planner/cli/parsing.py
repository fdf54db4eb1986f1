"""Commands whose help tells about arguments, too, and whose options can be read in the order in which they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_KEY: Final = "planner.options"


# Read where errors are reported, before anything is parsed.
_TRACEBACK: Final = click.Option(["--traceback"], is_flag=True, expose_value=False, hidden=True)


class _File(click.types.StringParamType):
    """Any text; a shell completes names of files. What is wrong with one is told by who opens it."""

    name = "file"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


FILE: Final = _File()


class Argument(click.Argument):
    """An argument with a line of help."""

    def __init__(self, declared: Sequence[str], *, about: str, **attributes: Any) -> None:
        super().__init__(declared, **attributes)
        self.about = about


@dataclass(frozen=True, slots=True)
class GivenOption:
    """One option as it came: the parameter's name and its text."""

    name: str
    text: str


class Command(click.Command):
    """A command that keeps the order of its repeatable options: of two that set one thing, the later wins."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # The parser itself tells what it took for an option and what for a value, so nothing can be read differently here.
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_KEY] = tuple(_in_order(values, order))
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """With what every command takes wherever it stands, as people add it to what they typed."""
        return [*super().get_params(ctx), _TRACEBACK]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Arguments before options."""
        arguments = [each for each in self.get_params(ctx) if isinstance(each, Argument)]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([(each.make_metavar(ctx), each.about) for each in arguments])
        super().format_options(ctx, formatter)


def _in_order(values: Any, order: Iterable[click.Parameter]) -> Iterator[GivenOption]:
    waiting = {name: deque(value) for name, value in values.items() if isinstance(value, list)}
    for parameter in order:
        if parameter.name in waiting:
            yield GivenOption(parameter.name, waiting[parameter.name].popleft())


def given_options(context: click.Context) -> tuple[GivenOption, ...]:
    """The repeatable options of a :class:`Command`, as they came."""
    options: tuple[GivenOption, ...] = context.meta.get(_KEY, ())
    return options
