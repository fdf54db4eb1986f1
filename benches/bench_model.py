"""How long planning of one model takes here, from its headers, beside accelerate.

Run: python benches/bench_model.py [MODEL] [--repeat TIMES]
MODEL is what `planner plan` takes; without it, the headers of a 70B Llama in 30 files, made for the purpose. Medians, after
one run that warms the caches. accelerate plans a live model of the same names, classes and bytes on the meta device.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from beside_accelerate import accelerate_plan
from planner.checkpoint.source import open_source
from planner.cli.synthetic import write_synthetic
from planner.devices.keys import DeviceKey
from planner.model.layout import Layout
from planner.model.tree import ModuleTree
from planner.planning import plan, plan_many
from planner.units import format_bytes

MANY = 1000


def main() -> None:
    asked = argparse.ArgumentParser(description="Measure how long planning takes here.")
    asked.add_argument("model", nargs="?")
    asked.add_argument("--repeat", type=int, default=15, metavar="TIMES")
    given = asked.parse_args()
    with model_path(given.model) as path:
        tree = open_source(path).tree
        total_bytes = int(Layout(tree).stored_sizes()[""])
        print(f"{tree.module_count} modules, {tree.tensor_count} tensors, {format_bytes(total_bytes)}")
        for what, found in figures(path, tree, budgets(total_bytes), given.repeat):
            print(f"{what:32} {found if isinstance(found, str) else f'{found * 1e3:10.2f} ms'}")


@contextmanager
def model_path(model: str | None) -> Iterator[str]:
    if model is not None:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="planner-bench-") as folder:
        write_synthetic(folder)
        yield folder


def budgets(total_bytes: int) -> dict[DeviceKey, int]:
    """Two unlike cards that hold nine tenths of the model together, and a host that holds all of it."""
    return {0: total_bytes * 6 // 10, 1: total_bytes * 3 // 10, "cpu": total_bytes}


def figures(
    path: str, tree: ModuleTree, max_memory: dict[DeviceKey, int], repeat: int
) -> Iterator[tuple[str, float | str]]:
    """By what was done, seconds, or why there are none."""
    rows = [{**max_memory, 0: max_memory[0] + row} for row in range(MANY)]
    yield "read the headers", median_s(lambda: open_source(path), repeat)
    yield "read and plan", median_s(lambda: plan(open_source(path), max_memory=max_memory), repeat)
    yield "plan again", median_s(lambda: plan(tree, max_memory=max_memory), repeat)
    yield f"plan for {MANY} budgets", median_s(lambda: plan_many(tree, rows), 1)
    theirs = accelerate_plan(tree, max_memory)
    yield "accelerate, from the live model", theirs if isinstance(theirs, str) else median_s(theirs, repeat)


def median_s(call: Callable[[], object], repeat: int) -> float:
    call()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
