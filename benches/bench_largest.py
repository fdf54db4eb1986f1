"""Planning with a workload, and asking back: what the largest context and the largest batch cost on a Llama-70B, and that they run.

    python benches/bench_largest.py            both tables, about three minutes
    python benches/bench_largest.py --quick    fewer repetitions, two families
    python benches/bench_largest.py --only times

Times are of the processor, in one process. *Runs*: on virtual accelerators whose memory ends at the budget, a prompt of the largest
context, or of the largest batch, runs, and 6 % more raises ``OutOfMemoryError``.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import planner
from planner import Largest
from planner.memory.recording import workloads
from planner.planning import fits
from planner.planning.automatic import search_of_weights, with_rooms
from planner.planning.problem import Problem
from timing import table, words

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from largest_runs import BUDGETS, found_for, runs_with  # type: ignore[import-not-found]
from rig import Accelerators, missing  # type: ignore[import-not-found]

FAMILIES = ("llama", "gemma", "mixtral")
CARDS = {"3 x 70 GiB": "70GiB", "3 x 80 GiB": "80GiB"}
OTHER = "75GiB"
PROBES = 200


@dataclass(frozen=True)
class Cost:
    """What one question cost."""

    of: str
    seconds: float
    said: str = ""


def llama_70b() -> Any:
    """On the meta device, in half precision."""
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).to(torch.bfloat16)


def spent(ask: Callable[[], Any], times: int = 1) -> tuple[float, Any]:
    """The median of the processor's seconds, and the answer."""
    turns, answer = [], None
    for _ in range(times):
        gc.collect()
        begun = time.process_time()
        answer = ask()
        turns.append(time.process_time() - begun)
    return statistics.median(turns), answer


def forgotten() -> None:
    """As in a process that has recorded nothing."""
    workloads._kept.clear()
    fits._kept.clear()


def costs(times: int) -> Iterator[Cost]:
    """Each question, first and again."""
    model = llama_70b()
    room = dict.fromkeys((0, 1, 2), "80GiB")
    workload = {"context_length": 4096}
    planner.plan(model, max_memory=room)
    plain = spent(lambda: planner.plan(model, max_memory=room), times)[0]
    yield Cost("plan without workload", plain)

    def planned() -> Any:
        return planner.plan(model, max_memory=room, workload=workload)

    yield Cost("plan with a workload, first", spent(planned)[0])
    yield Cost("plan with a workload, again", spent(planned, times)[0])
    yield Cost("probe: whether there is a plan", probe(model, room, workload))
    for name, size in CARDS.items():
        for of, beside in (("context_length", {}), ("batch_size", workload)):
            yield from asked(model, of, beside, name, size, times)


def asked(model: Any, of: Any, beside: Any, name: str, size: str, times: int) -> Iterator[Cost]:
    """The largest of one kind: first, again, and with another budget."""
    forgotten()

    def largest(room: str) -> Largest:
        return planner.largest(model, of, max_memory=dict.fromkeys((0, 1, 2), room), workload=beside)

    what = f"largest {of}, {name}"
    first, found = spent(lambda: largest(size))
    yield Cost(f"{what}: first", first, f"{found}; {found.tried} plans")
    yield Cost(f"{what}: again", spent(lambda: largest(size), times)[0])
    yield Cost(f"{what}: other budgets, with two more recordings", spent(lambda: largest(OTHER))[0])


def probe(model: Any, room: Any, workload: Any) -> float:
    """One question to the search alone; the median of many."""
    problem = Problem.of(model, None, {"max_memory": room, "workload": workload}, None)
    blocks = problem.blocks()
    rooms = problem.running_rooms(blocks)
    assert rooms is not None
    search = with_rooms(search_of_weights(problem, blocks), rooms)
    assert search is not None
    turns = []
    for at in range(PROBES):
        margin = replace(search, search_steps=search.search_steps - at % 2)
        begun = time.perf_counter()
        margin.fits()
        turns.append(time.perf_counter() - begun)
    return statistics.median(turns)


def runs_table(families: tuple[str, ...]) -> str:
    """What is found, and whether it and 6 % more run."""
    accelerators, rows = Accelerators(), []
    for name in families:
        for devices, budgets in BUDGETS.items():
            for of in ("context_length", "batch_size"):
                found = found_for(name, of, budgets)
                runs, more = runs_with(accelerators, name, of, budgets, found)
                rows.append([name, devices, of, found.value, found.limit, runs, not more])
    return table(["family", "devices", "of", "largest", "limit", "runs", "6 % more raises"], rows)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("times", "runs"))
    chosen = parser.parse_args()
    if chosen.only != "runs":
        found = costs(3 if chosen.quick else 9)
        print(
            table(
                ["question", "processor", "answer"],
                [[each.of, words(each.seconds), each.said] for each in found],
            )
        )
    if chosen.only != "times":
        print(runs_table(FAMILIES[:2] if chosen.quick else FAMILIES) if not missing() else missing())


if __name__ == "__main__":
    main()
