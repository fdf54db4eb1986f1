"""The command `planner` and its subcommands, each loaded when it is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final, NoReturn

import click

from planner.cli.exits import run
from planner.cli.output import replace_closed_streams, write
from planner.names import listed
from planner.spelling import shown

_DISTRIBUTION: Final = "device-map-planner"
_COMPLETION: Final = "_PLANNER_COMPLETE"  # click sets it while a shell asks for completions

# Lines of help stand here so that the list of commands loads none of them; a test holds them against the commands' own.
COMMANDS: Final = {
    "plan": "Decide where each module of a model goes.",
    "fit": "Find the largest context, or the largest batch, that fits.",
    "show": "Draw a saved plan.",
    "explain": "Say where a module lies, why, and what would move it.",
    "check": "List what is wrong with a device map.",
    "export": "Say a plan in the words of another engine: what to start, with which arguments and files.",
    "diff": "List what two plans place differently.",
    "sizes": "List bytes by module.",
    "devices": "List what this machine has free.",
    "probe": "Measure what this machine reads, computes and copies in a second.",
    "config": "Show settings, and where each was said.",
    "demo": "Plan a made-up Llama-70B, explain it, write its report, and find the longest context that fits.",
}


class _CommandLine(click.Group):
    """The group of all commands; whatever happens inside becomes a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found = import_module(f"planner.cli.{cmd_name}").command
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(args[0][:100], COMMANDS, cutoff=0.4) or list(COMMANDS)
            raise click.UsageError(f"No such command {shown(args[0])}. Did you mean {listed(near)}?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        if _COMPLETION in os.environ:
            super().main(args, prog_name="planner", **extra)
        argv = _with_help(list(sys.argv[1:] if args is None else args))
        replace_closed_streams()
        for stream in (sys.stdout, sys.stderr):
            # A name may hold what the terminal's encoding cannot say; better an escape than an error.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        sys.exit(run(lambda: self._run(argv), argv))

    def _run(self, argv: list[str]) -> object:
        with self.make_context("planner", list(argv)) as context:
            return self.invoke(context)


def _with_help(argv: list[str]) -> list[str]:
    """``planner`` and ``planner help …`` as the help that they ask for."""
    if not argv:
        return ["--help"]
    return [*argv[1:], "--help"] if argv[0] == "help" else argv


def _version(context: click.Context, option: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        write(f"planner {version(_DISTRIBUTION)}")
        context.exit()


@click.command(
    cls=_CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the version.",
)
# Read where errors are reported, before anything is parsed.
@click.option(
    "--traceback",
    is_flag=True,
    expose_value=False,
    help="After an error, where in planner it was raised.",
)
def app() -> None:
    """Decide which module of a PyTorch model goes on which GPU, the CPU or disk, and say why.

    Exit codes: 0 done; 1 the answer is no (nothing fits, a map has faults, plans differ); 2 bad input;
    70 a mistake in planner, or an installation that is broken; 130 interrupted; 141 the reader of the output left.
    """
