"""Loading and streaming from a checkpoint's own files beside `load_file`, transformers, accelerate and bare reads.

    python benches/bench_loading.py [FOLDER]            everything; half an hour, 6 GB of files in FOLDER, which stay there
    python benches/bench_loading.py [FOLDER] --quick    small models, few rounds: for trying
    python benches/bench_loading.py --only load growth  some parts: load, growth, first, forward, experts, memory

One thread, contenders in turns in a random order, medians. A cold page cache is made cold with `posix_fadvise`, and looked at.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import planner
from loading_contenders import (
    bare,
    by_accelerate,
    by_load_file,
    by_planner,
    by_transformers,
    maps,
    quiet,
    without_its_skeleton,
)
from loading_files import warm
from loading_forwards import Forwards, cold, model_run
from loading_models import LARGE, MANY_TENSORS, QUICK, Written, write_all
from loading_turns import (
    Figure,
    Spent,
    clocked,
    figures_table,
    in_turns,
    median_ratio,
    median_s,
    ratio_figure,
)

MIB = 1 << 20
LOADED = ("cpu", "half on disk", "all on disk")


@dataclass(frozen=True)
class Bench:
    """The models, and how often everything is tried."""

    models: Written
    rounds: int

    def load(self) -> Iterator[Figure]:
        """Warm; skeletons outside of the clock for all, and the whole way."""
        for folder, files in ((self.models.in_few_files, 4), (self.models.in_many_files, 100)):
            warm(folder)
            for placed in LOADED:
                given = maps(folder)[placed]
                cls = transformers.LlamaForCausalLM
                spent = in_turns(
                    {
                        "planner": clocked(by_planner(folder, given), lambda folder=folder: bare(folder)),
                        "load_file": clocked(by_load_file(folder), lambda folder=folder: bare(folder)),
                        "transformers": without_its_skeleton(by_transformers(folder, given), cls),
                        "planner, whole": clocked(by_planner(folder, given)),
                        "transformers, whole": clocked(by_transformers(folder, given)),
                    },
                    self.rounds,
                )
                case = f"load, {placed}, {files} files"
                yield from against_load_file(case, spent)
                yield ratio_figure(f"{case} / transformers", spent, "planner", "transformers", 0.5)
                yield ratio_figure(
                    f"{case} / transformers, processor", spent, "planner", "transformers", 0.5, "processor_s"
                )
                yield ratio_figure(
                    f"{case}, skeletons too / transformers",
                    spent,
                    "planner, whole",
                    "transformers, whole",
                    None,
                )
        folder = self.models.in_few_files
        spent = in_turns(
            {
                name: clocked(load(folder, {"": "cpu"}), lambda: bare(folder))
                for name, load in (("planner", by_planner), ("accelerate", by_accelerate))
            },
            2,
        )
        yield ratio_figure("load, cpu, 4 files / accelerate (2 rounds)", spent, "planner", "accelerate", 1.0)

    def growth(self) -> Iterator[Figure]:
        """Four times the tensors, with the cyclic collector off and on."""
        for placed in ("cpu", "all on disk"):
            for is_on in (False, True):
                spent = in_turns(
                    {
                        str(count): clocked(
                            by_planner(self.models.of_tensors(count), {"": placed.split()[-1]}),
                            lambda count=count: bare(self.models.of_tensors(count)),
                        )
                        for count in MANY_TENSORS
                    },
                    self.rounds,
                    is_collector_on=is_on,
                )
                few, many = (str(count) for count in MANY_TENSORS)
                what = f"12 000 tensors / 3 000, {placed}, collector {'on' if is_on else 'off'}"
                yield ratio_figure(what, spent, many, few, None if is_on else 5.0, "processor_s")

    def first(self) -> Iterator[Figure]:
        """Cold, from the call of load to the first output of one token, skeletons inside."""
        folder = self.models.in_few_files
        for placed, target in (("cpu", 1.0), ("half on disk", 1.0), ("blocks on disk", 0.9)):
            given = maps(folder)[placed]
            contenders = {
                "planner": to_first_output(by_planner(folder, given)),
                "transformers": to_first_output(by_transformers(folder, given)),
                "load_file": to_first_output(lambda: by_load_file(folder)(bare(folder))),
            }
            spent = in_turns(
                {name: cold(folder, clocked(turn)) for name, turn in contenders.items()}, self.rounds
            )
            yield ratio_figure(
                f"first output, cold, {placed} / transformers", spent, "planner", "transformers", target
            )
            yield ratio_figure(
                f"first output, cold, {placed} / load_file", spent, "planner", "load_file", None
            )

    def memory(self) -> Iterator[Figure]:
        """In processes of their own."""
        folder = self.models.in_few_files
        cases = [(placed, "auto", "auto") for placed in ("cpu", "half on disk", "blocks on disk")]
        for placed, read, dtype in [*cases, ("blocks on disk", "direct", "auto"), ("cpu", "auto", "float16")]:
            found = in_a_process(folder, placed, read, dtype)
            case = f"{placed}, read {read}" + ("" if dtype == "auto" else f", cast to {dtype}")
            if dtype == "auto":
                yield size_figure(f"anonymous memory of a load, {case}", found["load_bytes"], 8 * MIB)
                bound = found["staging_bytes"] if read == "direct" else 0
                yield size_figure(
                    f"anonymous memory while running, {case}", found["running_bytes"], bound + 16 * MIB
                )
            else:
                allowed = int(1.05 * found["copied_bytes"])
                yield size_figure(f"anonymous memory of a load, {case}", found["load_bytes"], allowed)
            yield size_figure(f"bytes written, {case}", found["written_bytes"], 0)
            for what in ("handles", "mappings", "threads"):
                count = found[f"{what}_left"]
                yield Figure(f"{what} left, {case}", count, 0, str(count))


def against_load_file(case: str, spent: dict[str, list[Spent]]) -> Iterator[Figure]:
    """Three times as long and four milliseconds are allowed."""
    for clock, word in (("wall_s", ""), ("processor_s", ", processor")):
        allowed = [Spent(3 * s.wall_s + 0.004, 3 * s.processor_s + 0.004) for s in spent["load_file"]]
        value = median_ratio(spent["planner"], allowed, clock)
        shown = "" if value is None else f"{value:.2f}×"
        first, second = median_s(spent["planner"], clock), median_s(spent["load_file"], clock)
        beside = f"{first:.4f} / {second:.4f} s" if first is not None and second is not None else ""
        yield Figure(f"{case} / (3 × load_file + 4 ms){word}", value, 1.0, shown, beside)


def to_first_output(load: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        model = load()
        return model, model_run(model)(1)

    return run


def in_a_process(folder: Path, *given: str) -> dict[str, Any]:
    program = Path(__file__).with_name("loading_memory.py")
    done = subprocess.run(
        [sys.executable, program, folder, *given], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def size_figure(what: str, size: int, target: int) -> Figure:
    return Figure(what, size / MIB, target / MIB, f"{size / MIB:.1f} MiB")


PARTS: dict[str, Callable[[Written, int], Iterator[Figure]]] = {
    "load": lambda models, rounds: Bench(models, rounds).load(),
    "growth": lambda models, rounds: Bench(models, rounds).growth(),
    "first": lambda models, rounds: Bench(models, rounds).first(),
    "forward": lambda models, rounds: Forwards(models, rounds).forward(),
    "experts": lambda models, rounds: Forwards(models, rounds).experts(),
    "memory": lambda models, rounds: Bench(models, rounds).memory(),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    with tempfile.TemporaryDirectory() as temporary:
        models = write_all(options.folder or Path(temporary), QUICK if options.quick else LARGE)
        rounds = options.rounds or (3 if options.quick else 9)
        figures: list[Figure] = []
        for part in options.only:
            try:
                for figure in PARTS[part](models, rounds):
                    figures.append(figure)
                    print(f"# {figure.what}: {figure.shown} {figure.verdict} {figure.beside}", flush=True)
            except Exception as error:
                print(f"# {part} has ended early: {type(error).__name__}: {error}", flush=True)
                figures.append(Figure(f"{part}: {type(error).__name__}", None, 0.0, "has ended early"))
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"\nplanner {planner.__version__}, {versions}, {rounds} rounds\n")
    print(figures_table(figures))


if __name__ == "__main__":
    main()
