"""The full differential sweep: every transformers class that can be built offline, both dialects, thirty budgets.

    python benches/sweep.py                    # everything, about half an hour on two cores
    python benches/sweep.py --only Bert --every 3

Each case is one model, one budget, one dialect, with the model's own no-split classes, without them, or with the fallback.
Ours must be identical where upstream's answer binds and valid everywhere else. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import model_zoo
from oracle.judge import Verdict, judge_accelerate, judge_transformers

DIALECTS = {"accelerate": judge_accelerate, "transformers": judge_transformers}
ROWS = (
    ("cases", lambda word, upstream: True),
    ("upstream binds", lambda word, upstream: upstream == "binding"),
    ("  ours identical", lambda word, upstream: word == "identical"),
    ("  ours identical but for the order of tied modules", lambda word, upstream: word == "reordered"),
    ("upstream broken", lambda word, upstream: upstream != "binding"),
    ("  raised", lambda word, upstream: upstream == "raised"),
    ("  map invalid", lambda word, upstream: upstream == "invalid"),
    ("  valid by an accident of a defect", lambda word, upstream: upstream == "accident"),
    ("  ours valid", lambda word, upstream: word == "repaired"),
    ("our exceptions", lambda word, upstream: word == "exception"),
    ("our invalid maps", lambda word, upstream: word == "invalid"),
    ("our differences", lambda word, upstream: word == "difference"),
)


def options(dialect: str, model: Any) -> Iterator[dict[str, Any]]:
    """The ways in which a model is planned in one dialect."""
    no_split = model_zoo.no_split_classes(model)
    yield {"no_split_module_classes": no_split}
    if no_split:
        yield {}
    if dialect == "accelerate":
        yield {"no_split_module_classes": no_split, "fallback_allocation": True}
        yield {"no_split_module_classes": no_split, "dtype": "bfloat16", "clean_result": False}
    else:
        yield {"no_split_module_classes": set(no_split), "clean_result": False}


def judge_class(name: str, every: int = 1) -> list[tuple[str, str, Verdict]]:
    """All cases of one class: (dialect, case in words, verdict). No cases where it cannot be built."""
    try:
        model = model_zoo.build(name)
    except Exception:
        return []
    found = []
    for dialect, judge in DIALECTS.items():
        for index, budget in enumerate(model_zoo.budgets(model)):
            for chosen in options(dialect, model) if index % every == 0 else ():
                case = f"{name} {budget} {chosen}"
                found.append((dialect, case, judge(model, budget, chosen)))
    return found


def quietly_judge_class(arguments: tuple[str, int]) -> list[tuple[str, str, Verdict]]:
    """As `judge_class`, in a worker."""
    transformers.logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(action="ignore"):
        found = judge_class(*arguments)
    gc.collect()
    return found


def totals(dialect: str, counts: Counter[tuple[str, str, str]]) -> Iterator[str]:
    """A table of one dialect."""
    yield f"\n{dialect}"
    for title, holds in ROWS:
        number = sum(n for (d, word, upstream), n in counts.items() if d == dialect and holds(word, upstream))
        yield f"  {title:<52}{number:>8}"


def main() -> int:
    """Sweeps, prints every fault and the totals; 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", default="", help="only classes whose name contains this")
    parser.add_argument("--every", type=int, default=1, help="only every n-th budget")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes")
    chosen = parser.parse_args()
    names = [name for name in model_zoo.names() if chosen.only in name]
    counts: Counter[tuple[str, str, str]] = Counter()
    built, started = 0, time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(chosen.jobs) as pool:
        tasks = [(name, chosen.every) for name in names]
        for done, found in enumerate(pool.imap_unordered(quietly_judge_class, tasks), start=1):
            built += bool(found)
            print(f"\r{done} of {len(names)} classes", end="", file=sys.stderr, flush=True)
            for dialect, case, verdict in found:
                counts[dialect, verdict.word, verdict.upstream] += 1
                if not verdict.is_good:
                    print(f"{dialect}: {case}\n    {str(verdict)[:2000]}", flush=True)
    print(file=sys.stderr)
    print(f"{built} of {len(names)} classes built; {time.perf_counter() - started:.0f} s")
    for dialect in DIALECTS:
        print("\n".join(totals(dialect, counts)))
    return int(any(word in ("exception", "invalid", "difference") for _, word, _ in counts))


if __name__ == "__main__":
    sys.exit(main())
