"""The command `planner` and its subcommands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final, NoReturn

import typer

from planner.cli import check, config, devices, diff, explain, plan, sizes
from planner.cli.exits import run
from planner.cli.output import replace_closed_streams, write
from planner.cli.parsing import OrderedCommand, VerbatimGroup

_DISTRIBUTION: Final = "device-map-planner"
_COMPLETION: Final = "_PLANNER_COMPLETE"  # typer sets it while a shell asks for completions


class _CommandLine(VerbatimGroup):
    """The group of all commands; whatever happens inside becomes a message and an exit code."""

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


app = typer.Typer(
    cls=_CommandLine,
    rich_markup_mode=None,  # plain help takes half the time, and reads the same through a pipe
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        write(f"planner {version(_DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def _planner(
    version: Annotated[
        bool, typer.Option("-V", "--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="After an error, where in planner it was raised.")
    ] = False,
) -> None:
    """Decide which module of a PyTorch model goes on which GPU, the CPU or disk, and say why.

    Exit codes: 0 done; 1 the answer is no (nothing fits, a map has faults, plans differ); 2 bad input;
    70 a mistake in planner; 130 interrupted; 141 the reader of the output left.
    """


app.command("plan", cls=OrderedCommand)(plan.command)
app.command("explain", cls=OrderedCommand)(explain.command)
app.command("check", cls=OrderedCommand)(check.command)
app.command("diff", cls=OrderedCommand)(diff.command)
app.command("sizes", cls=OrderedCommand)(sizes.command)
app.command("devices", cls=OrderedCommand)(devices.command)
app.add_typer(config.app, name="config")


def main() -> NoReturn:
    """The console script."""
    typer.main.get_command(app).main()
    raise AssertionError("the command line ends the process")
