"""Runs tests, and writes how each one ends when it does: python gpu_tests.py RESULTS [--virtual] -- PYTEST'S ARGUMENTS

The process may be stopped, or crash with a test; what has ended before is known, and which test it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Recorder:
    """A plugin that writes a line when a test begins, and one when it is over."""

    results: Path

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(nodeid, "unfinished")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._write(report.nodeid, report.outcome)

    def _write(self, nodeid: str, outcome: str) -> None:
        with self.results.open("a") as file:
            file.write(json.dumps([nodeid, outcome]) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--virtual", action="store_true")
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_args()
    if given.virtual:
        from rig import Accelerators

        Accelerators()
    return int(pytest.main(given.arguments, plugins=[Recorder(given.results)]))


if __name__ == "__main__":
    sys.exit(main())
