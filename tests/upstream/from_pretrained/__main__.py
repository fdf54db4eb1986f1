"""Runs transformers' four tests of loading over several devices with its functions, and inside `planner.integrate()`.

On two virtual accelerators, for small models of 47 classes. Prints a table and every test that passes with theirs and not
with ours. Exit status 1 if one of those is not named in docs/divergences.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from rig.build import missing
from upstream.fetch import TRANSFORMERS, UnreachableError, Upstream, fetched
from upstream.from_pretrained.classes import TESTS
from upstream.running import ROOT, results_of_pytest

DIVERGENCES = ROOT / "docs" / "divergences.md"
OUTCOMES = ("passed", "failed", "skipped")
THEIRS = "theirs"
CONTENDERS = {"theirs": THEIRS, 'ours, auto="transformers"': "transformers", 'ours, auto="best"': "best"}
TIME_LIMIT_S = 3600


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m upstream.from_pretrained", description=__doc__)
    parser.add_argument("-k", default="", help="only tests whose names match, as in pytest")
    parser.add_argument("-v", action="store_true", help="show what pytest printed")
    parser.add_argument(
        "--kept", type=Path, help="a folder for each run's outcomes; what is there is not run again"
    )
    parser.add_argument(
        "--runs",
        nargs="*",
        choices=CONTENDERS.values(),
        help="only these; nothing is compared without theirs",
    )
    options = parser.parse_args()
    try:
        upstream = fetched(TRANSFORMERS)
    except UnreachableError as error:
        print(f"skipped: transformers' source distribution is not to be had\n{error}")
        return 0
    if reason := missing():
        print(f"skipped: no virtual accelerators: {reason}")
        return 0
    runs = {
        title: kept_outcomes(
            options.kept and options.kept / f"{auto}.json",
            partial(
                outcomes, upstream, None if auto == THEIRS else auto, only=options.k, is_verbose=options.v
            ),
        )
        for title, auto in CONTENDERS.items()
        if not options.runs or auto in options.runs
    }
    print_table(runs)
    return report(runs, DIVERGENCES.read_text()) if THEIRS in runs else 0


def kept_outcomes(file: Path | None, run: Callable[[], dict[str, str]]) -> dict[str, str]:
    """A run's outcomes; those in a file, where there is one already."""
    if file is None:
        return run()
    if not file.exists():
        found = run()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    known: dict[str, str] = json.loads(file.read_text())
    return known


def outcomes(upstream: Upstream, auto: str | None, *, only: str, is_verbose: bool) -> dict[str, str]:
    """Each test's outcome in one run: "Class.test" to a word."""
    folder = Path(__file__).parent
    options = ["-p", "upstream.from_pretrained.plugin", "--rootdir", str(folder), "--confcutdir", str(folder)]
    options += (["--within", auto] if auto else []) + (["-k", only] if only else [])
    options.append(str(folder / "cases.py"))
    found = results_of_pytest(options, upstream, time_limit_s=TIME_LIMIT_S, is_verbose=is_verbose)
    return {name.partition("::Test")[2]: outcome for name, outcome in found["outcomes"].items()}


def print_table(runs: Mapping[str, Mapping[str, str]]) -> None:
    """One row for each test and one for the sum: passed, failed, skipped."""
    print(f"\n{'':<32}" + "".join(f"{title:>28}" for title in runs))
    for test in (*TESTS, ""):
        counts = [Counter(word for name, word in run.items() if name.endswith(test)) for run in runs.values()]
        cells = "".join(f"{' / '.join(str(count[key]) for key in OUTCOMES):>28}" for count in counts)
        print(f"{test or 'all':<32}{cells}")
    print(f"{'':<32}{' / '.join(OUTCOMES):>28}\n")


def report(runs: Mapping[str, Mapping[str, str]], explained: str) -> int:
    """Prints what passes with theirs and not with ours; 1 if something of it is not named in the divergences."""
    theirs, *ours = runs
    lost = [
        (title, name)
        for title in ours
        for name, word in sorted(runs[theirs].items())
        if word == "passed" != runs[title].get(name)
    ]
    unexplained = [row for row in lost if f"`{row[1]}`" not in explained]
    for row in lost:
        mark = "unexplained" if row in unexplained else "explained"
        print(f"passes with theirs, not with {row[0]} ({mark}): {row[1]}")
    if not lost:
        print("whatever passes with theirs passes with ours")
    return int(bool(unexplained))


if __name__ == "__main__":
    sys.exit(main())
