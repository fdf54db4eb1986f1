"""Runs a small Llama over two virtual accelerators and the CPU, and compares its words: python examples/demo_dispatch.py"""

from __future__ import annotations

import sys
import time
from itertools import groupby
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import planner
from planner.units import format_bytes
from rig import Accelerators, missing

PROMPT, WORDS = 8, 24
# The virtual accelerators compute attention step by step, and their allocator takes what is asked for and no more.
WORKLOAD = {
    "context_length": PROMPT + WORDS,
    "prompt_length": PROMPT,
    "attention_kernel": "math",
    "allocator_margin": 0,
}


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 512, "num_hidden_layers": 12}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4)).eval()


def generated(model: nn.Module) -> tuple[torch.Tensor, float]:
    """Tokens after a prompt, and seconds."""
    start = time.perf_counter()
    prompt = torch.arange(3, 3 + PROMPT, device=0)[None]
    tokens = model.generate(prompt, max_new_tokens=WORDS, do_sample=False, pad_token_id=0)
    return tokens.cpu(), time.perf_counter() - start


def show_plan(plan: planner.Plan) -> None:
    for device, run in groupby(plan.device_map.items(), key=lambda item: item[1]):
        keys = [name for name, _ in run]
        runs_on = {plan.execution_map.get(name, device) for name in keys}
        where = "" if runs_on == {device} else f", runs on {', '.join(map(str, runs_on))}"
        print(f"  {device!s:>4}  {keys[0]}{f' … {keys[-1]}' if len(keys) > 1 else ''}{where}")


def main() -> None:
    if reason := missing():
        print(f"\nNo virtual accelerators here: {reason}")
        return
    accelerators = Accelerators()
    torch.set_num_threads(1)
    model, plain = llama(), llama().to(0)
    size_bytes = sum(parameter.nbytes for parameter in model.parameters())
    budgets = {0: size_bytes // 2 + (1 << 18), 1: size_bytes // 3 + (1 << 18), "cpu": size_bytes}
    print(f"\nA Llama of {format_bytes(size_bytes)} over two virtual accelerators and the CPU:")
    plan = planner.plan(model, max_memory=budgets, headroom=None, staging_blocks=2, workload=WORKLOAD)
    show_plan(plan)
    verified = planner.verify(model, plan)
    largest = planner.largest(
        model,
        "context_length",
        max_memory=budgets,
        headroom=None,
        staging_blocks=2,
        workload=_without_context(),
    )
    planner.dispatch(model, plan)
    want, plain_s = generated(plain)
    del plain
    accelerators.reset()
    generated(model)
    found, spread_s = generated(model)
    print(f"  {WORDS} tokens: {' '.join(map(str, found[0, -WORDS:].tolist()))}")
    same = "the same as" if found.equal(want) else "NOT THE SAME AS"
    print(f"  {same} the undispatched model's; {spread_s:.2f} s, undispatched {plain_s:.2f} s")
    is_within = True
    for device in plan.devices[:2]:
        peak_bytes = accelerators.peak_bytes(device.id)
        is_within &= peak_bytes <= device.peak_bytes <= budgets[device.id]
        print(
            f"  accelerator {device.id}: at most {format_bytes(peak_bytes)} in use, planned {format_bytes(device.peak_bytes)}, "
            f"budget {format_bytes(budgets[device.id])}"
        )
    print("\nVerified before it was there:", *(f"  {row}" for row in verified.peaks), sep="\n")
    print("As the accelerators have counted it:")
    measured = planner.measure(model, plan)
    print(*(f"  {row}" for row in measured.peaks), sep="\n")
    print(f"The largest context in the same memory: {largest}")
    if not (found.equal(want) and is_within):
        raise SystemExit(1)


def _without_context() -> dict[str, object]:
    return {name: value for name, value in WORKLOAD.items() if name != "context_length"}


if __name__ == "__main__":
    main()
