"""Exit codes, and the one place where anything that a command raises becomes a message and a code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import click

from planner.cli.broken import broken_words
from planner.cli.output import plain_data, visible, write_json
from planner.errors import InfeasibleError, InvalidConfigError, PlannerError

OK: Final = 0
NEGATIVE: Final = 1
"""The answer is no: nothing fits, a map has faults, plans differ."""
BAD_INPUT: Final = 2
"""What was asked cannot be understood, read or written."""
INTERNAL_ERROR: Final = 70
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
"""The reader of the output left; what a shell says of a program that the signal SIGPIPE ended."""


# Settings that have no default and are required where others are said.
_SAID_BY: Final = {("workload", "context_length"): "--context"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a command could not do, in words and fields.

    Args:
        kind: the class of the error.
        message: for people.
        exit_code: of the process.
        fields: for programs.
    """

    kind: str
    message: str
    exit_code: int
    fields: Mapping[str, Any] = field(default_factory=dict)

    def to_data(self) -> dict[str, object]:
        """The value of ``error`` in the JSON output."""
        words = {name: plain_data(value) for name, value in self.fields.items()}
        return {"type": self.kind, "message": self.message, "exit_code": self.exit_code, "fields": words}


def run(call: Callable[[], object], argv: Sequence[str]) -> int:
    """The exit code of a command, after everything that it raised has been reported.

    Args:
        call: the command; what it returns is the exit code, None is 0.
        argv: its arguments: with ``--json`` among them, errors are JSON too.
    """
    try:
        try:
            return _reported(call, argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _abandon_output()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # of the output itself: a full disk, for one
        _abandon_output()
        sys.stderr.write(f"planner: the output cannot be written: {error.strerror}\n")
        return BAD_INPUT


def _reported(call: Callable[[], object], argv: Sequence[str]) -> int:
    try:
        code = call()
        return code if isinstance(code, int) else OK
    except BrokenPipeError:
        raise
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, EOFError):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the outermost border: nothing above could report it
        failure = failure_of(error)
        _report(failure, argv)
        if "--traceback" in argv:
            sys.stderr.write("".join(traceback.format_exception(error)))
        return failure.exit_code


def _report(failure: Failure, argv: Sequence[str]) -> None:
    if "--json" in argv:
        write_json({"error": failure.to_data()})
    else:
        sys.stdout.flush()  # so that earlier output stands before
        sys.stderr.write(f"planner: {visible(failure.message)}\n")


def failure_of(error: Exception) -> Failure:
    """The words, fields and exit code for an exception."""
    kind = type(error).__name__
    if isinstance(error, PlannerError):
        code = NEGATIVE if isinstance(error, InfeasibleError) else BAD_INPUT
        return Failure(kind=kind, message=_with_options(error), exit_code=code, fields=error.fields)
    if isinstance(error, click.ClickException):
        return Failure(kind="UsageError", message=_usage(error), exit_code=BAD_INPUT)
    if isinstance(error, OSError):
        fields = {"file": error.filename, "reason": error.strerror}
        return Failure(kind=kind, message=str(error), exit_code=BAD_INPUT, fields=fields)
    if isinstance(error, ImportError):
        return Failure(kind=kind, message=broken_words(error), exit_code=INTERNAL_ERROR)
    return Failure(kind=kind, message=_internal(error), exit_code=INTERNAL_ERROR)


def _with_options(error: PlannerError) -> str:
    """An error's words, with the options that say what is required and was not said."""
    asked = error.problems if isinstance(error, InvalidConfigError) else ()
    missing = [_SAID_BY[problem.path] for problem in asked if not problem.words and problem.path in _SAID_BY]
    return "\n".join([error.message, *(f"{option} says it." for option in missing)])


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    hint = f"\nTry '{context.command_path} --help' for help." if context is not None else ""
    return f"{error.format_message()}{hint}"


def _internal(error: Exception) -> str:
    return (
        f"internal error: {type(error).__name__}: {error}\n"
        "This is a mistake in planner, not in what you asked. Please report it with the command, and with what it prints "
        "when --traceback is added to it."
    )


def _abandon_output() -> None:
    """Lets the interpreter flush what is left into nothing, since it would complain when it ends."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return  # captured by a test: there is nothing below it to redirect
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
