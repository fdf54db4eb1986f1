"""Plans a 70B Llama over two unlike GPUs and a CPU, without any of them: python examples/demo.py"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from itertools import groupby

import accelerate
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import planner
from planner.model.tree import ModuleTree
from planner.plans.wording import sentence
from planner.strategies.sequential import Layout, sequential
from planner.units import format_bytes

BUDGETS = {0: "80GiB", 1: "24GiB", "cpu": "200GiB"}
CARDS = {0: "80GiB", 1: "80GiB"}
# A prompt, and two words of an answer.
WORKLOAD = {"context_length": 2048, "prompt_length": 2046}


def llama_70b() -> torch.nn.Module:
    config = LlamaConfig(
        num_hidden_layers=80,
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def compact(device_map: dict[str, object]) -> list[str]:
    """The device map with runs of keys on one device in one line each."""
    lines = []
    for device, run in groupby(device_map.items(), key=lambda item: item[1]):
        keys = [name for name, _ in run]
        names = keys[0] if len(keys) == 1 else f"{keys[0]} … {keys[-1]}"
        lines.append(f"  {device!s:>4}  {len(keys):4} {'key ' if len(keys) == 1 else 'keys'}  {names}")
    return lines


def median_ms(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(15):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def show_plan(model: torch.nn.Module) -> None:
    no_split = model._no_split_modules
    device_map = planner.infer_auto_device_map(model, BUDGETS, no_split_module_classes=no_split)
    print("\nDevice map:", *compact(device_map), sep="\n")

    # The same in steps: the tree and its layout can be kept and planned again for other budgets.
    outcome = sequential(Layout(ModuleTree.from_module(model), no_split=no_split), BUDGETS)
    assert outcome.device_map() == device_map
    print("\nUsage:")
    for usage in outcome.usage:
        free = "no limit" if usage.free_bytes is None else f"{format_bytes(usage.free_bytes)} free"
        print(
            f"  {usage.device!s:>4}  {format_bytes(usage.used_bytes):>9} used"
            f"  {format_bytes(usage.reserved_bytes):>9} kept for the largest layer  {free}"
        )
    print("\nWhy, wherever it was not simply the next one that fits:")
    for reason in outcome.reasons:
        if reason.rule != "fits":
            print("  " + sentence(reason))


def show_times(model: torch.nn.Module) -> None:
    no_split = list(model._no_split_modules)
    ours = median_ms(lambda: planner.infer_auto_device_map(model, BUDGETS, no_split))
    theirs = median_ms(lambda: accelerate.infer_auto_device_map(model, dict(BUDGETS), no_split))
    listing = median_ms(lambda: list(model.named_parameters()))
    same = dict(planner.infer_auto_device_map(model, BUDGETS, no_split)) == dict(
        accelerate.infer_auto_device_map(model, dict(BUDGETS), no_split)
    )
    print("\nFrom the live model to its device map, median of 15:")
    print(f"  planner                          {ours:8.2f} ms")
    print(f"  accelerate                       {theirs:8.2f} ms   {theirs / ours:.0f} times as long")
    print(f"  list(model.named_parameters())   {listing:8.2f} ms   for comparison")
    print(f"  same map: {'yes' if same else 'no'}")


def show_memory(model: torch.nn.Module) -> None:
    print("\nWith a prompt of 2046 words and an answer of two, memory while it runs counts, too:")
    plan = planner.plan(model, max_memory=BUDGETS, workload=WORKLOAD)
    print(*(f"  {line}" for line in plan.summary().splitlines()), sep="\n")
    start = time.perf_counter()
    found = planner.verify(model, plan)
    print(f"\nThe same run by the dispatched model in fake tensors, in {time.perf_counter() - start:.0f} s:")
    print(*(f"  {line}" for line in str(found).splitlines()), sep="\n")
    # The class's default configuration ends at 2048; Llama 3.1 does at 128k.
    largest = planner.largest(model, "context_length", max_memory=CARDS, upto=2**17, workload={})
    print("\nThe largest context on " + " and ".join(CARDS.values()) + f", nothing offloaded: {largest}")
    if found.runs is not True or any(row.found_bytes > row.predicted_bytes for row in found.peaks):
        raise SystemExit(1)


def main() -> None:
    for name in ("accelerate", "planner"):  # both note that this machine does not have those devices
        logging.getLogger(name).setLevel(logging.ERROR)
    model = llama_70b()
    size = format_bytes(sum(parameter.nbytes for parameter in model.parameters()))
    print(
        f"Llama 70B, bfloat16, {size}, over "
        + ", ".join(f"{device}: {budget}" for device, budget in BUDGETS.items())
    )
    show_plan(model)
    show_times(model)
    show_memory(model)


if __name__ == "__main__":
    main()
