"""The same problems, before and after a change: every map, byte, reason, message and JSON, in a file of one line each.

    python benches/recorded_plans.py before.jsonl                    # record
    python benches/recorded_plans.py after.jsonl --against before.jsonl

Drawn trees in all strategies, granularities and modes and in both drop-in dialects, and transformers classes at their default
sizes on the meta device. Equal problems have equal names in both files. Exits with 1 where an answer differs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

import planner
from planner.compat import transformers as dialect

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import generators  # type: ignore[import-not-found]

STRATEGIES: tuple[Any, ...] = (
    "auto",
    {"type": "auto", "fill": "fewest"},
    {"type": "auto", "fill": "in_order", "search_steps": 500},
    "sequential",
    {"type": "sequential", "fallback_allocation": True, "reserve": "if_offloaded"},
    "balanced",
    "balanced_low_0",
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"mode": "no_disk"},
    {"mode": "gpu_only"},
    {"granularity": "module"},
    {"granularity": "expert"},
    {"execute_offloaded": "cpu", "staging_blocks": 2},
    {"dtype": "float16"},
    {"headroom": {"all": "10%"}},
)
CLASSES = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig()),
    "opt": lambda: transformers.OPTForCausalLM(transformers.OPTConfig()),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config()),
    "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config()),
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(num_hidden_layers=8)),
    "bert": lambda: transformers.BertModel(transformers.BertConfig()),
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig()),
}
SHARES = ((0.6, 0.6), (0.3, 0.5), (1.2,), (0.4,), (0.1, 0.2, 0.3), (0.34, 0.34, 0.34))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--against", type=Path, help="what was recorded before")
    parser.add_argument("--drawn", type=int, default=600, help="drawn problems")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found = dict(problems(options.drawn))
    options.file.write_text("".join(json.dumps([name, answer]) + "\n" for name, answer in found.items()))
    print(f"{len(found)} answers in {options.file}")
    return compare(options.against, found) if options.against else 0


def compare(file: Path, found: dict[str, Any]) -> int:
    before = dict(json.loads(line) for line in file.read_text().splitlines())
    found = json.loads(json.dumps(found))
    other = [name for name in before | found if before.get(name) != found.get(name)]
    for name in other[:20]:
        print(name)
        for part in (before.get(name) or {}) | (found.get(name) or {}):
            was, now = (each.get(name, {}).get(part) for each in (before, found))
            if was != now:
                print(f"  {part}\n    before {str(was)[:600]}\n    after  {str(now)[:600]}")
    print(f"{len(other)} of {len(before | found)} differ")
    return 1 if other else 0


def problems(drawn: int) -> Iterator[tuple[str, Any]]:
    for seed in range(drawn):
        rng = random.Random(seed)
        case = generators.case(rng)
        yield f"drawn {seed} accelerate", answer(drop_in, case)
        yield f"drawn {seed} transformers", answer(theirs, case)
        settings = {
            # What this machine has free just now is no part of a problem.
            "max_memory": {key: int(size) for key, size in case.max_memory.items()} or {"cpu": 10**6},
            "strategy": rng.choice(STRATEGIES),
            **rng.choice(OPTIONS),
        }
        yield f"drawn {seed} plan", answer(planned, case.model, settings)
        pins = {
            "pin": {name: rng.choice(list(case.max_memory) or ["cpu"]) for name in names(case.model, rng)}
        }
        yield (
            f"drawn {seed} pinned",
            answer(planned, case.model, {**settings, "strategy": "auto", **pins}),
        )
        yield f"drawn {seed} check", answer(checked, case)
    yield from real()


def real() -> Iterator[tuple[str, Any]]:
    for name, make in CLASSES.items():
        with torch.device("meta"):
            model = make()
        total = sum(p.numel() * p.element_size() for p in model.parameters())
        for shares in SHARES:
            budgets = {
                **{number: int(share * total) for number, share in enumerate(shares)},
                "cpu": 4 * total,
            }
            for strategy in STRATEGIES[:1] + STRATEGIES[3:4] + STRATEGIES[5:6]:
                said = {"max_memory": budgets, "strategy": strategy}
                yield f"{name} {shares} {strategy}", answer(planned, model, said)
            many = planner.plan_many(model, [budgets, {0: total // 3, "cpu": total}], granularity="module")
            yield f"{name} {shares} many", {"plans": [text(each) for each in many]}


def names(model: torch.nn.Module, rng: random.Random) -> list[str]:
    found = [name for name, _ in model.named_modules() if name]
    return rng.sample(found, min(len(found), rng.randint(0, 2)))


def answer(make: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What came out, with what was printed and warned; or the error with its fields."""
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(printed):
        warnings.simplefilter("always")
        try:
            found = make(*arguments)
        except planner.PlannerError as error:
            found = {
                "error": type(error).__name__,
                "message": error.message,
                "fields": repr(sorted(error.fields.items())),
            }
    return {**found, "printed": printed.getvalue(), "warned": [str(each.message) for each in warned]}


def drop_in(case: Any) -> dict[str, Any]:
    return {
        "map": list(
            planner.infer_auto_device_map(case.model, case.max_memory, **case.kwargs, verbose=True).items()
        )
    }


def theirs(case: Any) -> dict[str, Any]:
    kwargs = {
        key: case.kwargs[key] for key in ("no_split_module_classes", "offload_buffers") if key in case.kwargs
    }
    found = dialect.infer_auto_device_map(case.model, case.max_memory, **kwargs, verbose=True)
    balanced = dialect.get_balanced_memory(case.model, case.max_memory)
    return {"map": list(found.items()), "balanced": list(balanced.items())}


def planned(model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    plan = planner.plan(model, **settings)
    told = [planner.explain(plan, name) for name in list(plan.device_map)[:3]]
    return {"json": json.loads(text(plan)), "summary": plan.summary(), "explained": told}


def checked(case: Any) -> dict[str, Any]:
    keys = [name for name, _ in case.model.named_modules()]
    devices = list(case.max_memory) or ["cpu"]
    device_map = {name: devices[number % len(devices)] for number, name in enumerate(keys[::2])}
    return {"findings": [repr(each) for each in planner.check(case.model, device_map, case.max_memory)]}


def text(plan: Any) -> str:
    return plan.to_json(provenance=False) if isinstance(plan, planner.Plan) else str(plan)


if __name__ == "__main__":
    sys.exit(main())
