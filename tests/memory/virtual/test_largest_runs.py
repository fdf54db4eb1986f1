"""The largest context and the largest batch run within the budget that they were found for, and 6 % more does not."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

import planner
from planner import Largest
from rig import Accelerators
from tiny_models import built

# Virtual accelerators have no fused attention.
WORK = {"allocator_margin": 0, "attention_kernel": "math"}
ROOM = 1 << 20
DEVICES: dict[str, dict[Any, int]] = {
    "one": {0: ROOM},
    "two": {0: ROOM // 2, 1: ROOM // 2},
    "offloaded": {0: ROOM // 2, "cpu": 1 << 24},
}


def ran(model: Any, accelerators: Accelerators, budgets: dict[Any, int], rows: int, tokens: int) -> bool:
    """Whether a prompt of all the context runs where each accelerator has its budget and no more."""
    gc.collect()
    gc.disable()
    limits = [
        accelerators.memory_limit_bytes(index, size) for index, size in budgets.items() if index != "cpu"
    ]
    try:
        for limit in limits:
            limit.__enter__()
        given = torch.ones((rows, tokens), dtype=torch.long, device=0)
        with torch.no_grad():
            model(input_ids=given, use_cache=True, logits_to_keep=1)
    except torch.OutOfMemoryError:
        return False
    finally:
        for limit in limits:
            limit.__exit__(None, None, None)
        gc.enable()
        gc.collect()
    return True


def found_for(name: str, of: Any, budgets: dict[Any, int]) -> Largest:
    other = {"batch_size": 2} if of == "context_length" else {"context_length": 24}
    workload: Any = {**WORK, **other}
    return planner.largest(
        built(name), of, upto=100_000, max_memory=budgets, headroom=None, workload=workload
    )


@pytest.mark.parametrize("of", ["context_length", "batch_size"])
@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("name", ["llama", "gemma", "mixtral"])
def test_the_largest_runs_and_more_does_not(
    virtual_accelerators: Accelerators, name: str, devices: str, of: str
) -> None:
    gc.collect()
    base = [virtual_accelerators.used_bytes(index) for index in (0, 1)]
    budgets = DEVICES[devices]
    found = found_for(name, of, budgets)
    assert found.limit == "proven"
    model = planner.dispatch(built(name).eval(), found.plan)
    limits = {index: size + (base[index] if index != "cpu" else 0) for index, size in budgets.items()}
    more = found.value + max(1, -(-6 * found.value // 100))
    for value, runs in ((found.value, True), (more, False)):
        rows, tokens = (2, value) if of == "context_length" else (value, 24)
        assert ran(model, virtual_accelerators, limits, rows, tokens) == runs
