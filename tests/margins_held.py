"""Whether an allocator's margin holds: a plan's workload run in no more memory than the plan has, and what the allocator held."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import planner
from planner import Plan

__all__ = ["STEPS", "llama", "planned", "require_margin"]

STEPS = 40


def llama(**sizes: int) -> Any:
    """A Llama with random weights, in half precision."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16).eval().requires_grad_(False)


def planned(model: Any, prompt: int, batch: int, *, offloaded: bool, kernel: str) -> Plan:
    """All of a model on accelerator 0, or half of it."""
    workload = {
        "context_length": prompt + STEPS,
        "prompt_length": prompt,
        "batch_size": batch,
        "attention_kernel": kernel,
        "allocator_margin": None,
    }
    whole = planner.plan(model, max_memory={0: "60GiB", "cpu": "60GiB"}, headroom=None, workload=workload)
    if not offloaded:
        return whole
    half = whole.devices[0].used_bytes // 2
    budget = whole.devices[0].peak_bytes + whole.devices[0].margin_bytes - half
    return planner.plan(model, max_memory={0: budget, "cpu": "60GiB"}, headroom=None, workload=workload)


def require_margin(
    model: Any, plan: Plan, limited: Callable[[int], AbstractContextManager[None]]
) -> tuple[int, int]:
    """Runs a plan's workload in the memory of its budget.

    Args:
        limited: within, accelerator 0 has so many bytes more than are in use by others.

    Returns:
        What the allocator has held beyond what was held before, and what was planned with the margin.
    """
    (device,) = (device for device in plan.devices if device.id == 0)
    gc.collect()
    torch.accelerator.empty_cache()
    before_bytes = torch.accelerator.memory_reserved(0)
    planned_bytes = device.peak_bytes + device.margin_bytes
    with limited(planned_bytes):
        planner.dispatch(model, plan)
        found = planner.measure(model, plan)
        planner.undispatch(model)
    print(found)
    assert found.steps == STEPS
    return found.reserved_bytes[0] - before_bytes, planned_bytes
