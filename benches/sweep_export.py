"""Plans of every causal class of transformers, made tiny, for every engine: what is emitted says the plan's split, or is refused in words.

.venv/bin/python benches/sweep_export.py --seed 1
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections import Counter
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from torch import nn

import planner
import tiny_zoo
from engine_readers import emitted_counts
from planner import Plan, export
from planner.devices.table_machine import Host, machine_of_cards
from planner.errors import InfeasibleError, PlannerError
from planner.plans.stages import layers_of

STAGED = ("vllm", "sglang", "megatron", "tensorrt_llm", "torchtitan", "deepspeed")
CARDS = ("H100 80GB SXM", "RTX 4090", "RTX 3090", "L4")
HOST = Host(memory_bytes_per_s=5 * 10**10, flops_per_s=10**12)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    rng = Random(parser.parse_args().seed)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    tally, wrong = Counter[str](), list[str]()
    for name in tiny_zoo.names():
        if not name.endswith(("ForCausalLM", "LMHeadModel")):
            continue
        try:
            model = tiny_zoo.build(name, 0)
        except Exception:  # a class that does not take its configuration made tiny says so in any way
            tally["not built"] += 1
            continue
        for engine in (*STAGED, "llama_cpp"):
            try:
                tally[outcome(model, engine, rng)] += 1
            except (PlannerError, AssertionError, LookupError, TypeError, ValueError) as error:
                wrong.append(f"{name} for {engine}: {type(error).__name__}: {error}")
    print(", ".join(f"{many} {what}" for what, many in tally.most_common()))
    print("\n".join((*wrong, f"{len(wrong)} not as meant")))
    if wrong:
        sys.exit(1)


def outcome(model: nn.Module, engine: Any, rng: Random) -> str:
    """What came of one drawn plan. Raises where the split is another, or where what is said is no answer."""
    size, cards = sum(each.nbytes for each in (*model.parameters(), *model.buffers())), rng.randint(2, 4)
    budgets: dict[int | str, int] = {at: int(size * rng.uniform(0.2, 1.0)) for at in range(cards)}
    if engine == "llama_cpp":
        budgets["cpu"] = 3 * size
    machine = machine_of_cards({at: rng.choice(CARDS) for at in range(cards)}, HOST)
    try:
        made = planner.plan(
            model,
            max_memory=budgets,
            machine=machine,
            strategy=rng.choice(("throughput", "pipeline")),
            engine=engine,
        )
    except InfeasibleError:
        return "without room"
    except PlannerError as error:
        if "one tensor" in error.message or "lists of layers" in error.message:
            return "refused"
        raise
    plan = Plan.from_json(made.to_json())
    found = layers_of(plan)
    homes = [parts[0].home for parts in found.layers[: found.hidden]]
    counts = [len(list(group)) for _, group in groupby(homes)]
    try:
        command = getattr(export, engine)(plan)
    except PlannerError:
        if len(counts) == 1:
            return "of one stage"
        raise
    if engine == "llama_cpp":
        return "for llama.cpp"
    extra = len(found.layers) - found.hidden
    emitted = emitted_counts(engine, command, sum(counts), extra)
    assert emitted == counts and min(emitted) >= 1, f"{emitted} for {counts}"
    return "as planned"


if __name__ == "__main__":
    main()
