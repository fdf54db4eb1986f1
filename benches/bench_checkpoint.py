"""From process start to the plan of a 70B checkpoint, in headers only.

python benches/bench_checkpoint.py [--runs 20]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkpoints import LLAMA_70B, llama_tensors, write_folder

PROGRAM = """
import sys, time
started = time.perf_counter()
import planner
imported = time.perf_counter()
plan = planner.plan(sys.argv[1], max_memory={0: "80GiB", 1: "24GiB", "cpu": "200GiB"})
planned = time.perf_counter()
assert "torch" not in sys.modules, "torch was imported"
assert plan.source.total_bytes == int(sys.argv[2]), plan.source
print(imported - started, planned - imported)
"""


def measure(folder: Path, total_bytes: int, runs: int) -> list[tuple[float, float, float]]:
    """Seconds of the whole process, of the import and of the plan, run by run; the first one warms up."""
    rows = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder), str(total_bytes)],
            capture_output=True,
            text=True,
            check=True,
        )
        whole = time.perf_counter() - started
        imported, planned = map(float, done.stdout.split())
        rows.append((whole, imported, planned))
    return rows[1:]


def main() -> None:
    """Prints a row of the table for each number of files."""
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=20)
    runs = options.parse_args().runs
    tensors = llama_tensors(LLAMA_70B)
    total_bytes = sum(size for _, _, size in tensors.values())
    print("| files | process, ms | import, ms | plan, ms |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for files in (30, 191):
            folder = write_folder(Path(place) / str(files), LLAMA_70B, tensors, files)
            rows = measure(folder, total_bytes, runs)
            cells = [f"{1000 * statistics.median(column):.1f}" for column in zip(*rows, strict=True)]
            print(f"| {files} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
