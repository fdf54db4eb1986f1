"""From the start of the process to the printed answer: help, and plans of a 70B Llama in 30 and in 191 files.

Run: python benches/bench_cli.py
Asks for a median, over 20 runs after one that warms the caches, of less than 0.3 s for help and 0.5 s for a plan. The
processor's time is what is asked of: the command has one thread, so on an idle machine the clock says the same, and on a
busy one it measures the others.
"""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from planner.cli.synthetic import write_synthetic

RUNS = 20
BUDGETS = ("-d", "0=80GiB", "-d", "1=24GiB", "-d", "cpu=200GiB")
PLANNER = ("-m", "planner")


def cases(folder: pathlib.Path) -> dict[str, tuple[tuple[str, ...], float | None]]:
    """By name, arguments of the interpreter and the most seconds that the median may take."""
    found: dict[str, tuple[tuple[str, ...], float | None]] = {
        "python -c pass": (("-c", "pass"), None),
        "planner --help": ((*PLANNER, "--help"), 0.3),
    }
    for files in (30, 191):
        model = folder / str(files)
        write_synthetic(model, files)
        found[f"planner plan, {files} files"] = ((*PLANNER, "plan", str(model), *BUDGETS), 0.5)
        found[f"planner plan --json, {files} files"] = (
            (*PLANNER, "plan", str(model), *BUDGETS, "--json"),
            0.5,
        )
    return found


def run_s(arguments: tuple[str, ...]) -> tuple[float, float]:
    """Seconds of one run: of the clock, and of the processor."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return seconds, spent


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        asked = cases(pathlib.Path(folder))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in asked}
        for turn in range(RUNS + 1):  # in turns, so that a slow spell of the machine hits all
            for name, (arguments, _) in asked.items():
                taken = run_s(arguments)
                if turn:
                    times[name].append(taken)
    is_met = True
    print(f"{'':36} {'clock':>8} {'processor':>10} {'asked':>7}")
    for name, (_, limit) in asked.items():
        median, spent = (statistics.median(each) for each in zip(*times[name], strict=True))
        is_met = is_met and (limit is None or spent < limit)
        wanted = "" if limit is None else f"{limit:.1f} s"
        print(f"{name:36} {median * 1e3:5.0f} ms {spent * 1e3:7.0f} ms {wanted:>7}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
