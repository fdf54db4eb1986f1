"""Runs a case in a process of its own, with limits on time and memory, and says how it ended.

For cases that may crash, hang or eat the machine. A case is a function at the top of a module; it checks its own results
with `assert`, and what it may raise is named by the caller. `tests/dispatch/test_fault_harness.py` has one for each verdict.
"""

from __future__ import annotations

import contextlib
import enum
import faulthandler
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

__all__ = ["Outcome", "Verdict", "all_must_end_clean", "judge", "must_end_clean"]

# Imported once; each case is a fork of that.
PRELOADED = [
    "pytest",
    "torch",
    "planner.loading.load",
    "planner.loading.api",
    "planner.dispatching.install.prepare",
]
POLL_S = 0.02
MIB = 1 << 20


class Verdict(enum.Enum):
    """How a case ended."""

    CLEAN = "clean"  # it returned, or raised what it may raise
    WRONG = "wrong"  # an assertion of the case failed
    UNCLEAR = "unclear"  # it raised something else
    CRASH = "crash"  # the process died: by a signal, or by leaving without a word
    HANG = "hang"  # it was not over in time, or its process did not end
    GREEDY = "greedy"  # it took more memory than it may


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict and what led to it.

    Args:
        verdict: how the case ended.
        error: class of what it raised, without its module; None if it raised nothing.
        message: the error's text, or the signal, or which limit was passed.
        output: what the process printed, with Python's stack if it was killed by a signal.
    """

    verdict: Verdict
    error: str | None
    message: str
    output: str


def judge(
    case: Callable[..., Any],
    *arguments: Any,
    clean_errors: Iterable[type[BaseException]] = (),
    time_limit_s: float = 20.0,
    memory_limit_bytes: int = 1024 * MIB,
) -> Outcome:
    """Runs `case(*arguments)` and says how it ended.

    Args:
        case: a function that another process can import.
        clean_errors: what the case may raise, with subclasses.
        time_limit_s: for the case and the end of its process.
        memory_limit_bytes: memory of its own beyond what it starts with; pages of files do not count.

    Guarantee: the process and those that it started in its group are gone afterwards.

    Cost: some milliseconds; the first call of a process also imports torch.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile(mode="r", errors="replace") as printed:
        process = context.Process(
            target=run, args=(sender, printed.name, tuple(clean_errors), case, arguments), daemon=True
        )
        process.start()
        sender.close()
        passed = wait(process, receiver, time_limit_s, memory_limit_bytes)
        stop(process)
        told = received(receiver)
        return outcome(passed, told, process.exitcode, printed.read())


def must_end_clean(case: Callable[..., Any], *arguments: Any, **limits: Any) -> None:
    """Judges a case that must return."""
    found = judge(case, *arguments, **limits)
    assert found.verdict is Verdict.CLEAN and found.error is None, found


def all_must_end_clean(
    case: Callable[..., Any], folder: Path, variants: Iterable[tuple[Any, ...]], **limits: Any
) -> None:
    """Judges variants of a case one behind the other in one process, `case(folder / "0", *variant)` and so on."""
    must_end_clean(run_all, case, folder, list(variants), **{"time_limit_s": 60.0, **limits})


def run_all(case: Callable[..., Any], folder: Path, variants: list[tuple[Any, ...]]) -> None:
    """Prints each variant before it runs, so that the last one is known if the process dies."""
    for number, variant in enumerate(variants):
        print(variant, flush=True)
        try:
            case(folder / str(number), *variant)
        except AssertionError as error:
            raise AssertionError(f"{variant}: {error}") from error


def run(
    sender: Connection,
    printed: str,
    clean_errors: tuple[type[BaseException], ...],
    case: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """In the case's process: tells the verdict, its error's class and text."""
    os.setsid()
    with open(printed, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable(file=2)
    torch.set_num_threads(1)  # else its threads spin against those of other tests
    sender.send(("started", None, ""))
    try:
        case(*arguments)
    except BaseException as error:
        verdict = Verdict.WRONG if isinstance(error, AssertionError) else Verdict.UNCLEAR
        if isinstance(error, clean_errors):
            verdict = Verdict.CLEAN
        sender.send((verdict.value, type(error).__name__, str(error)))
    else:
        sender.send((Verdict.CLEAN.value, None, ""))
    sender.close()


def wait(
    process: Any, receiver: Connection, time_limit_s: float, memory_limit_bytes: int
) -> tuple[Verdict, str] | None:
    """Which limit the process passed; None if it ended within both."""
    if not receiver.poll(time_limit_s + 60.0):  # the first fork waits for the imports
        return Verdict.HANG, "did not start"
    with contextlib.suppress(EOFError):
        receiver.recv()
    started_s = time.monotonic()
    before_bytes = own_bytes(process.pid)
    while process.is_alive():
        taken_bytes = own_bytes(process.pid) - before_bytes
        if taken_bytes > memory_limit_bytes:
            return Verdict.GREEDY, f"took {taken_bytes} bytes of {memory_limit_bytes}"
        if time.monotonic() - started_s > time_limit_s:
            return Verdict.HANG, f"was not over after {time_limit_s} s"
        process.join(POLL_S)
    return None


def own_bytes(pid: int) -> int:
    """Memory that is no file's, of a process; 0 if it is over."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def stop(process: Any) -> None:
    """Ends the process and its group, if they have not ended by themselves."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def received(receiver: Connection) -> tuple[Verdict, str | None, str] | None:
    """What the process told; None if it died before."""
    try:
        verdict, error, message = receiver.recv()
    except EOFError:
        return None
    return Verdict(verdict), error, message


def outcome(
    passed: tuple[Verdict, str] | None,
    told: tuple[Verdict, str | None, str] | None,
    exit_code: int,
    printed: str,
) -> Outcome:
    """A limit passed comes first, then how the process ended, then what it told."""
    if passed is not None:
        return Outcome(passed[0], None, passed[1], printed)
    if exit_code < 0:
        return Outcome(Verdict.CRASH, None, signal.Signals(-exit_code).name, printed)
    if told is None or exit_code != 0:
        return Outcome(Verdict.CRASH, None, f"exit code {exit_code}", printed)
    return Outcome(*told, printed)
