"""`plan()` end to end: live model in, plan out, beside the drop-in function and accelerate; and fleets of budgets.

Run: python benches/bench_auto.py
Asks of Llama-70B: at most 1.5 times `infer_auto_device_map` of this package where the model fits, at most 10 ms more where
it does not, and 10 000 budgets in less than 2 s.
"""

from __future__ import annotations

import logging
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import accelerate

import models
import planner
from timing import race, ratio, table, times, words

GIB = 1 << 30
FITS = {0: 80 * GIB, 1: 80 * GIB, "cpu": 200 * GIB}
SPILLS = {0: 80 * GIB, 1: 24 * GIB, "cpu": 200 * GIB}
BUDGET_ROWS = 10_000


def race_of(model: Any, no_split: list[str], rounds: int) -> tuple[list[object], float, float]:
    """One row of the table; the quotient of `plan` where it fits, and the seconds more where it does not."""
    budgets = {"fits": FITS, "spills": SPILLS}
    contenders: dict[str, Callable[[], object]] = {}
    for case, row in budgets.items():
        contenders[f"plan {case}"] = lambda row=row: planner.plan(
            model, max_memory=row, no_split_module_classes=no_split
        )
    contenders["infer"] = lambda: planner.infer_auto_device_map(
        model, dict(FITS), no_split_module_classes=no_split
    )
    contenders["accelerate"] = lambda: accelerate.infer_auto_device_map(
        model, dict(FITS), no_split_module_classes=no_split
    )
    timings, _ = race(contenders, rounds)
    own = ratio(timings["plan fits"].turns, timings["infer"].turns) or 0.0
    theirs = ratio(timings["accelerate"].turns, timings["plan fits"].turns)
    more = timings["plan spills"].seconds - timings["plan fits"].seconds
    row = [*(str(timings[name]) for name in contenders), times(own), times(theirs)]
    return row, own, more


def fleet_seconds(model: Any, runs: int = 3) -> float:
    """Median seconds for plans of one model over many budgets, some of which it fits."""
    sizes = random.Random(0)
    rows = [
        {0: sizes.randint(40, 90) * GIB, 1: sizes.randint(20, 90) * GIB, "cpu": 300 * GIB}
        for _ in range(BUDGET_ROWS)
    ]
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        planner.plan_many(model, rows)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> int:
    """Prints the table and the aims; 1 if one is missed."""
    logging.disable(logging.WARNING)
    llama = models.llama_70b()
    head = ["model", "plan, fits", "plan, spills", "infer", "accelerate", "plan / infer", "accelerate / plan"]
    row, own, more = race_of(llama, ["LlamaDecoderLayer"], rounds=40)
    print(table(head, [["Llama-70B", *row]]))
    fleet = fleet_seconds(llama)
    aims = [
        ("plan / infer_auto_device_map", times(own), own <= 1.5),
        ("spills − fits", words(max(more, 1e-9)), more <= 0.010),
        (f"{BUDGET_ROWS} budgets", words(fleet), fleet < 2.0),
    ]
    for name, value, is_met in aims:
        print(f"{'met   ' if is_met else 'missed'}  {name}: {value}")
    return int(not all(is_met for *_, is_met in aims))


if __name__ == "__main__":
    sys.exit(main())
