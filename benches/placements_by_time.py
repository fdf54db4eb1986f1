"""What a step is modelled to take with the plans of accelerate and planner: arithmetic with rates of data sheets, no measurement.

.venv/bin/python benches/placements_by_time.py --tokens 1 16 1024
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, DeepseekV3Config, LlamaConfig, MixtralConfig, Qwen3MoeConfig

import planner
from planner.devices.machine import Machine
from planner.devices.table_machine import Host, machine_of_cards
from planner.errors import PlannerError

_LLAMA = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
_MIXTRAL = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
_QWEN = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}
CONFIGS: Mapping[str, Callable[[], Any]] = {
    "Llama-70B": lambda: LlamaConfig(**_LLAMA, vocab_size=128256, dtype="bfloat16"),
    "Mixtral-8x7B": lambda: MixtralConfig(
        **_MIXTRAL, num_local_experts=8, num_experts_per_tok=2, dtype="bfloat16"
    ),
    "Qwen3-235B": lambda: Qwen3MoeConfig(
        **_QWEN, vocab_size=151936, tie_word_embeddings=False, dtype="bfloat16"
    ),
    "DeepSeek-V3": lambda: DeepseekV3Config(dtype="bfloat16"),
}


@dataclass(frozen=True)
class Computer:
    """Cards, and what is known of the host."""

    name: str
    cards: tuple[str, ...]
    host_gb_per_s: int
    host_tflops: float
    ram: str = "1000GiB"

    def machine(self) -> Machine:
        """Its rates."""
        host = Host(
            memory_bytes_per_s=self.host_gb_per_s * 10**9,
            flops_per_s=round(self.host_tflops * 10**12),
            disk_bytes_per_s=3 * 10**9,
        )
        return machine_of_cards(dict(enumerate(self.cards)), host)

    def budgets(self) -> dict[int | str, int | str]:
        """All of its memory."""
        machine = self.machine()
        cards = {number: machine.device(number).memory_bytes or 0 for number in range(len(self.cards))}
        return {**cards, "cpu": self.ram}


BOTH = Computer("H100 80 + 4090 24", ("H100 80GB SXM", "RTX 4090"), 200, 2.0)
FOUR = Computer("4 x 4090", ("RTX 4090",) * 4, 80, 1.0)
SMALL = Computer("3090 24 + 3060 12", ("RTX 3090", "RTX 3060"), 60, 0.8)
EIGHT = Computer("8 x H200", ("H200 SXM",) * 8, 400, 4.0, "2000GiB")
ROWS = (
    *(("Llama-70B", each) for each in (BOTH, FOUR, SMALL)),
    *(("Mixtral-8x7B", each) for each in (BOTH, SMALL)),
    *(("Qwen3-235B", each) for each in (BOTH, FOUR)),
    ("DeepSeek-V3", EIGHT),
)
COLUMNS = (
    "accelerate auto",
    "sequential",
    "auto",
    "auto, cpu runs",
    "latency, whole",
    "latency, parts",
    "proven",
    "plan in",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1])
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    for tokens in arguments.tokens:
        print(f"\nA step of {tokens} token{'s' if tokens > 1 else ''}, in ms:\n")
        print(f"| model | machine | {' | '.join(COLUMNS)} |")
        print("|---" * (len(COLUMNS) + 2) + "|")
        worse = 0
        made: dict[str, nn.Module] = {}
        for name, computer in ROWS:
            if name not in made:
                made = {name: model_of(name)}
            cells, is_worse = row(made[name], computer, tokens)
            worse += is_worse
            print(f"| {name} | {computer.name} | {' | '.join(cells)} |", flush=True)
        print(f"\nrows where a plan by time is worse than `auto` with either executor: {worse}")
        if worse:
            sys.exit(1)


def model_of(name: str) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIGS[name]()).to(torch.bfloat16)


def row(model: nn.Module, computer: Computer, tokens: int) -> tuple[list[str], bool]:
    """The cells of one row, and whether a plan by time is worse than `auto`."""
    machine, budgets = computer.machine(), computer.budgets()
    common: dict[str, Any] = {"max_memory": budgets, "headroom": None}

    def priced(plan: Any) -> int:
        return planner.price(model, plan, machine=machine, tokens=tokens).latency_ps

    others = [
        _try(lambda mode=mode: priced(accelerate_map(model, budgets, mode)))
        for mode in ("auto", "sequential")
    ]  # type: ignore[misc]
    autos = [
        _try(lambda execute=execute: priced(planner.plan(model, execute_offloaded=execute, **common)))  # type: ignore[misc]
        for execute in ("accelerator", "cpu")
    ]
    strategy = {"type": "latency", "tokens": tokens, "order": "any"}
    whole = planner.plan(model, strategy={**strategy, "parts": False}, machine=machine, **common).timing
    begun = time.perf_counter()
    parts = planner.plan(model, strategy=strategy, machine=machine, **common).timing
    took_s = time.perf_counter() - begun
    assert whole is not None and parts is not None
    values = [*others, *autos, whole.value_ps, parts.value_ps]
    best = min((value for value in autos if value is not None), default=whole.value_ps)
    cells = ["-" if value is None else f"{value / 1e9:.0f}" for value in values]
    known = "yes" if parts.proven else f"gap {parts.gap:.2%}"
    return [*cells, known, f"{took_s * 1e3:.0f} ms"], min(whole.value_ps, parts.value_ps) > best


def accelerate_map(model: nn.Module, budgets: Mapping[Any, Any], mode: str) -> dict[str, Any]:
    """The map of accelerate itself."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    classes = model._no_split_modules
    limits = dict(budgets)
    if mode == "auto":
        limits = get_balanced_memory(model, max_memory=limits, no_split_module_classes=classes)
    return infer_auto_device_map(model, max_memory=limits, no_split_module_classes=classes)


def _try(make: Callable[[], int]) -> int | None:
    """None where there is no such plan."""
    try:
        return make()
    except PlannerError:
        return None


if __name__ == "__main__":
    main()
