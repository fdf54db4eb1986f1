"""Runs of pytest in processes of their own, forked from one that has the large libraries loaded."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

__all__ = ["ForkedRuns", "forked_runs"]

SERVER = Path(__file__).with_name("fork_server.py")
# Until the server has its libraries.
START_LIMIT_S = 300


class ForkedRuns:
    """One server, and the runs that it is asked for, one after the other.

    Args:
        folder: where they run.
    """

    def __init__(self, folder: Path) -> None:
        self._server = subprocess.Popen(
            [sys.executable, SERVER], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        atexit.register(self.close)

    def run(self, arguments: list[str], limit_s: float) -> tuple[int, str]:
        """The exit code of pytest with these arguments, and what it printed.

        Raises:
            TimeoutError: it took too long, and was killed; with what it printed.
        """
        assert self._server.stdin is not None
        with tempfile.NamedTemporaryFile() as output:
            self._server.stdin.write(json.dumps([output.name, *arguments]).encode() + b"\n")
            self._server.stdin.flush()
            child = self._answer(START_LIMIT_S)
            try:
                code = self._answer(limit_s)
            except TimeoutError:
                os.kill(child, signal.SIGKILL)
                self._answer(START_LIMIT_S)
                text = Path(output.name).read_text(errors="replace")
                raise TimeoutError(f"{arguments[0]} took more than {limit_s} s\n{text}") from None
            return code, Path(output.name).read_text(errors="replace")

    def close(self) -> None:
        """Ends the server."""
        self._server.kill()
        self._server.wait()

    def _answer(self, limit_s: float) -> int:
        source = self._server.stdout
        assert source is not None
        ready, _, _ = select.select([source], [], [], limit_s)
        if not ready:
            raise TimeoutError
        return int(source.readline())


@cache
def forked_runs(folder: Path) -> ForkedRuns:
    """The server of this process."""
    return ForkedRuns(folder)
