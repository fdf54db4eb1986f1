"""Which classes can be recorded on the meta device: every class with a head that can be built small and runs there.

python benches/sweep_recording.py [NAME ...]     # or 2/4: the second of four parts

Each runs a prefill and two steps on the CPU, and the same is recorded. What is recorded has as many forwards as what ran. Prints a
table of those that are refused, with the operator and the block that stop them; exits with 1 if a class is refused without either, or if,
of all of them, fewer than 218 are recorded.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import transformers

import model_zoo
import planner
from cache_models import STEPS, givens, run_real
from cache_zoo import NotMeasuredError, build
from planner.errors import RecordingError
from planner.memory.recording.session import RecordedRun, record_run
from planner.memory.recording.workloads import takes_use_cache
from planner.memory.tape import Tape

WANTED = 218


def run_of(model: Any, given: dict[str, Any]) -> RecordedRun:
    """What is recorded: the shapes of what has run."""
    inputs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in given.items()}
    options = {"use_cache": True} if takes_use_cache(model) else {}
    return RecordedRun(inputs=inputs, steps=STEPS, options=options)


def real_run(model: Any) -> tuple[dict[str, Any], int]:
    """Inputs that a model runs with on the CPU, and how many forwards that gave.

    Raises:
        NotMeasuredError: it runs with none.
    """
    problems: list[Exception] = []
    for given in givens(model, torch.float32):
        try:
            return given, len(run_real(model, given, "dynamic"))
        except NotMeasuredError:
            return given, 1  # it runs, and keeps nothing
        except Exception as error:
            problems.append(error)
    raise NotMeasuredError(f"{type(problems[0]).__name__}: {str(problems[0])[:100]}")


def recorded(model: Any, given: dict[str, Any]) -> Tape:
    """The recording of the same."""
    blocks = list(planner.plan(model, max_memory={0: "1TiB"}, headroom=None).block_bytes)
    return record_run(model, blocks, run_of(model, given))


def judge(name: str, totals: Counter[str]) -> Iterator[str]:
    """Rows of the table for one class; counts it."""
    try:
        model = build(name)
        given, forwards = real_run(model)
    except Exception as error:
        totals["not built, or does not run"] += 1
        yield f"| {name} | does not run on the CPU | {_short(error)} |"
        return
    try:
        tape = recorded(model, given)
    except RecordingError as error:
        totals["refused" if error.operator or error.block else "refused without a reason"] += 1
        yield f"| {name} | `{error.operator}` in {error.block or 'its own code'} | {_short(error)} |"
        return
    totals["recorded"] += 1
    if len(tape.phases) != forwards:
        totals["recorded, other forwards than ran"] += 1
        yield f"| {name} | {len(tape.phases)} forwards recorded | {forwards} ran |"


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160].replace("|", "/")


def main(names: list[str]) -> int:
    """Prints the table and counts; 1 if too few are recorded."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names, part = [name for name in names if "/" not in name], [name for name in names if "/" in name]
    is_whole = not names and not part
    names = names or model_zoo.names()
    if part:
        number, parts = map(int, part[0].split("/"))
        names = names[number - 1 :: parts]
    totals: Counter[str] = Counter()
    started = time.perf_counter()
    print("| class | stopped by | why |\n|---|---|---|")
    for name in names:
        for row in judge(name, totals):
            print(row, flush=True)
    print()
    for kind, count in sorted(totals.items()):
        print(f"{count:5} {kind}")
    print(f"{len(names)} classes, {time.perf_counter() - started:.0f} s")
    return int(totals["refused without a reason"] > 0 or (is_whole and totals["recorded"] < WANTED))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
