"""What a border costs when nothing moves, and what an offloaded model costs, beside accelerate.

    python benches/bench_dispatch.py            both tables, about a minute
    python benches/bench_dispatch.py --json     the same figures as JSON

Everything runs on the CPU in one process with one thread; contenders take turns. What a hook adds is its best turn less the
best turn of the bare module: a busy machine only ever makes a turn longer.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import accelerate
import accelerate.hooks
import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import planner
from planner.dispatching.hooks.align import AlignDevicesHook
from planner.dispatching.methods.forward import Border
from planner.dispatching.tensors.journal import Journal
from timing import no_collector, table

CALLS = 1_000
TURNS = 61
SKIP = ["past_key_values"]
CPU = torch.device("cpu")


class Block(nn.Module):
    """Takes what a decoder layer takes, and does nothing."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        return hidden_states


def arguments(device: torch.device) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """One tensor, and what LlamaModel hands to its layers."""
    hidden = torch.zeros(1, 8, 64, device=device)
    layer = {
        "attention_mask": torch.zeros(1, 1, 8, 8, device=device),
        "position_ids": torch.arange(8, device=device)[None],
        "past_key_values": DynamicCache(),
        "use_cache": True,
        "position_embeddings": tuple(torch.zeros(1, 8, 16, device=device) for _ in range(2)),
    }
    return {"one tensor": ((hidden,), {}), "a decoder layer's": ((hidden,), layer)}


def blocks(device: torch.device) -> dict[str, nn.Module]:
    bare, ours, theirs = Block(), Block(), Block()
    Border(ours, AlignDevicesHook(device, skip_keys=SKIP)).install(Journal())
    accelerate.hooks.add_hook_to_module(theirs, accelerate.hooks.AlignDevicesHook(device, skip_keys=SKIP))
    return {"bare": bare, "planner": ours, "accelerate": theirs}


def call_us(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        module(*args, **kwargs)
    return (time.perf_counter() - start) / CALLS * 1e6


def border_costs(device: torch.device = CPU, rounds: int = TURNS) -> dict[str, dict[str, float]]:
    """Microseconds added per call, by arguments and library."""
    modules, costs = blocks(device), {}
    with no_collector():
        for case, (args, kwargs) in arguments(device).items():
            turns: dict[str, list[float]] = {name: [] for name in modules}
            for _ in range(rounds):
                for name, module in modules.items():
                    turns[name].append(call_us(module, args, kwargs))
            best = {name: min(spent) for name, spent in turns.items()}
            costs[case] = {name: best[name] - best["bare"] for name in ("planner", "accelerate")}
    return costs


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=22, **sizes, **heads)).eval()


def forward_ms() -> dict[str, float]:
    """Milliseconds of a forward of a small Llama: as it is, and with all weights offloaded to the CPU."""
    plain = llama()
    runs: dict[str, nn.Module] = {
        "undispatched": plain,
        "planner, offloaded": planner.cpu_offload(copy.deepcopy(plain), "cpu"),
        "accelerate, offloaded": accelerate.cpu_offload(copy.deepcopy(plain), "cpu"),
    }
    ids = torch.arange(8)[None]
    spent: dict[str, list[float]] = {name: [] for name in runs}

    def turn(name: str, run: Callable[..., Any]) -> None:
        start = time.perf_counter()
        run(ids, use_cache=False)
        spent[name].append((time.perf_counter() - start) * 1e3)

    with torch.no_grad(), no_collector():
        for _ in range(TURNS):
            for name, model in runs.items():
                turn(name, model)
    return {name: min(times) for name, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    costs, forwards = border_costs(), forward_ms()
    if options.json:
        print(json.dumps({"added_us": costs, "forward_ms": forwards}))
        return
    rows = [
        [
            case,
            f"{cost['planner']:.2f} µs",
            f"{cost['accelerate']:.2f} µs",
            f"{cost['accelerate'] / cost['planner']:.1f}×",
        ]
        for case, cost in costs.items()
    ]
    print("Added to a call when nothing moves\n")
    print(table(["arguments", "planner", "accelerate", "ratio"], rows))
    print("\nA forward of a Llama of 22 layers, hidden size 64, 8 tokens\n")
    print(table(["model", "time"], [[name, f"{time_ms:.2f} ms"] for name, time_ms in forwards.items()]))


if __name__ == "__main__":
    main()
