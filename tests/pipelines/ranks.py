"""Pipelines in real processes, for tests: all ranks of one run, forked from a process that has the libraries loaded."""

from __future__ import annotations

import atexit
import functools
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Rank", "run_ranks"]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Rank:
    """How a rank ended.

    Args:
        code: its exit code; None where it was still there when all were ended.
        value: what its work returned.
        error: what its work raised.
        cause: the cause of that, in words.
        began_s: when it began, by the clock that all share.
        ended_s: when it ended.
        log: what it printed.
    """

    code: int | None
    value: Any
    error: BaseException | None
    cause: str
    began_s: float
    ended_s: float
    log: str


class _Server:
    def __init__(self) -> None:
        paths = [str(HERE.parent), *sys.path]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "rank_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE.parent,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
        atexit.register(self.end)

    def ask(self, order: dict[str, Any]) -> list[int | None]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server of ranks has ended"
        return list(json.loads(answer))

    def end(self) -> None:
        """Its children end with it."""
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@functools.cache
def _server() -> _Server:
    return _Server()


def run_ranks(
    work: str,
    processes: int,
    *,
    started: int | None = None,
    unawaited: Sequence[int] = (),
    limit_s: float = 60.0,
    port: int = 0,
    keeps_store: bool = False,
    **arguments: Any,
) -> list[Rank]:
    """Runs a function of :mod:`pipelines.rank_work` in as many processes as ranks, as torchrun starts them.

    Args:
        work: the function's name, or MODULE:FUNCTION of another module; it gets the rank, and the arguments.
        processes: how many torchrun says there are.
        started: how many are started; by default all.
        unawaited: ranks that may be ended when all others have ended.
        limit_s: when all that are left are ended.
        port: where they meet; by default a store is kept for them, as torchrun's agent does it.
        keeps_store: whether rank 0 keeps the store, as without torchrun.
    """
    with tempfile.TemporaryDirectory(prefix="ranks_") as place:
        order = {
            "work": work if ":" in work else f"pipelines.rank_work:{work}",
            "processes": processes,
            "started": processes if started is None else started,
            "unawaited": list(unawaited),
            "limit_s": limit_s,
            "port": port,
            "keeps_store": keeps_store,
            "arguments": arguments,
            "place": place,
        }
        codes = _server().ask(order)
        return [_rank(Path(place), rank, code) for rank, code in enumerate(codes)]


def _rank(place: Path, rank: int, code: int | None) -> Rank:
    found_at, log = place / f"{rank}.found", place / f"{rank}.log"
    found = pickle.loads(found_at.read_bytes()) if found_at.exists() else {}
    return Rank(
        code=code,
        value=found.get("value"),
        error=found.get("error"),
        cause=found.get("cause", ""),
        began_s=found.get("began_s", 0.0),
        ended_s=found.get("ended_s", 0.0),
        log=log.read_text(errors="replace") if log.exists() else "",
    )
