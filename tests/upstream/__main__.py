"""Runs accelerate's test files with its functions and with ours, on the CPU and on two virtual accelerators.

Prints a table and every test that passes with theirs and not with ours. Exit status 1 if one of those is not named in
docs/divergences.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from rig.build import missing
from upstream.fetch import ACCELERATE, UnreachableError, Upstream, fetched
from upstream.running import ROOT, results_of_pytest

DIVERGENCES = ROOT / "docs" / "divergences.md"
OUTCOMES = ("passed", "failed", "skipped")
TIME_LIMIT_S = 900


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m upstream", description=__doc__)
    parser.add_argument("-k", default="", help="only tests whose names match, as in pytest")
    parser.add_argument("-v", action="store_true", help="show what pytest printed")
    options = parser.parse_args()
    try:
        upstream = fetched(ACCELERATE)
    except UnreachableError as error:
        print(f"skipped: accelerate's source distribution is not to be had\n{error}")
        return 0
    places = ["cpu", "virtual"]
    if reason := missing():
        print(f"without virtual accelerators: {reason}")
        places.remove("virtual")
    regressions = []
    for place in places:
        theirs = outcomes(upstream, place, is_ours=False, only=options.k, is_verbose=options.v)
        ours = outcomes(upstream, place, is_ours=True, only=options.k, is_verbose=options.v)
        print_table(place, theirs, ours)
        regressions += [(place, name) for name in lost(theirs, ours)]
    return report(regressions, DIVERGENCES.read_text())


def outcomes(upstream: Upstream, place: str, *, is_ours: bool, only: str, is_verbose: bool) -> dict[str, str]:
    """Each test's outcome in one run of its own process."""
    options = ["-p", "upstream.plugin", "--rootdir", str(upstream.tests)]
    options += ["--ours"] * is_ours + ["--virtual"] * (place == "virtual") + (["-k", only] if only else [])
    options += [str(upstream.tests / f"{name}.py") for name in ACCELERATE.files]
    found = results_of_pytest(options, upstream, time_limit_s=TIME_LIMIT_S, is_verbose=is_verbose)
    if is_ours:
        print(f"substituted: {', '.join(found['substituted'])}")
    return dict(found["outcomes"])


def print_table(place: str, theirs: dict[str, str], ours: dict[str, str]) -> None:
    """One row for each file and one for the sum: passed, failed, skipped."""
    print(f"\n{place:<24}{'theirs':>22}{'ours':>22}")
    for file in (*ACCELERATE.files, ""):
        counts = [
            Counter(outcome for name, outcome in run.items() if name.startswith(file))
            for run in (theirs, ours)
        ]
        cells = "".join(f"{' / '.join(str(count[key]) for key in OUTCOMES):>22}" for count in counts)
        print(f"{file or 'all':<24}{cells}")
    print(f"{'':<24}{' / '.join(OUTCOMES):>44}\n")


def lost(theirs: dict[str, str], ours: dict[str, str]) -> list[str]:
    """Tests that pass with theirs and not with ours."""
    return sorted(name for name, outcome in theirs.items() if outcome == "passed" != ours.get(name))


def report(regressions: list[tuple[str, str]], explained: str) -> int:
    """Prints what was lost; 1 if something of it is not named in the table of divergences."""
    unexplained = [row for row in regressions if f"`{row[1].rpartition('.')[2]}`" not in explained]
    for place, name in regressions:
        mark = "unexplained" if (place, name) in unexplained else "explained"
        print(f"passes with theirs, not with ours ({place}, {mark}): {name}")
    if not regressions:
        print("whatever passes with theirs passes with ours")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
