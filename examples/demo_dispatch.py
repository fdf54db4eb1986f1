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

WORDS = 24


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 512, "num_hidden_layers": 12}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4)).eval()


def generated(model: nn.Module) -> tuple[torch.Tensor, float]:
    """Tokens after a prompt, and seconds."""
    start = time.perf_counter()
    prompt = torch.arange(3, 11, device=0)[None]
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
    budgets = {0: size_bytes // 2, 1: size_bytes // 3, "cpu": size_bytes}
    print(f"\nA Llama of {format_bytes(size_bytes)} over two virtual accelerators and the CPU:")
    plan = planner.plan(model, max_memory=budgets, headroom=None, staging_blocks=2)
    show_plan(plan)
    planner.dispatch(model, plan)
    want, plain_s = generated(plain)
    del plain
    accelerators.reset()
    generated(model)
    found, spread_s = generated(model)
    print(f"  {WORDS} tokens: {' '.join(map(str, found[0, -WORDS:].tolist()))}")
    same = "the same as" if found.equal(want) else "NOT THE SAME AS"
    print(f"  {same} the undispatched model's; {spread_s:.2f} s, undispatched {plain_s:.2f} s")
    for index in (0, 1):
        peak = format_bytes(accelerators.peak_bytes(index))
        print(
            f"  accelerator {index}: at most {peak} in use, budget for weights {format_bytes(budgets[index])}"
        )
    if not found.equal(want):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
