"""The largest that is found, run on virtual accelerators whose memory ends at the budget: for its test and for the benchmark."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import torch

import planner
from planner import Largest
from rig import Accelerators
from tiny_models import built

__all__ = ["BUDGETS", "found_for", "runs_with"]

# Virtual accelerators have no fused attention.
WORK = {"allocator_margin": 0, "attention_kernel": "math"}
ROOM = 1 << 20
BUDGETS: dict[str, dict[Any, int]] = {
    "one": {0: ROOM},
    "two": {0: ROOM // 2, 1: ROOM // 2},
    "offloaded": {0: ROOM // 2, "cpu": 1 << 24},
}
_ROWS, _TOKENS = 2, 24


def made(name: str) -> Any:
    """A tiny model, ready to run."""
    return built(name).eval()


def found_for(name: str, of: Any, budgets: Mapping[Any, int]) -> Largest:
    """The largest of one model."""
    other = {"batch_size": _ROWS} if of == "context_length" else {"context_length": _TOKENS}
    return planner.largest(
        made(name), of, upto=100_000, max_memory=budgets, headroom=None, workload={**WORK, **other}
    )


def runs_with(
    accelerators: Accelerators, name: str, of: Any, budgets: Mapping[Any, int], found: Largest
) -> tuple[bool, bool]:
    """Whether what was found runs where each accelerator has its budget and no more, and whether 6 % more does."""
    gc.collect()
    limits = {
        index: size + accelerators.used_bytes(index) for index, size in budgets.items() if index != "cpu"
    }
    model = planner.dispatch(made(name), found.plan)
    more = found.value + max(1, -(-6 * found.value // 100))
    fine, above = (
        _ran(model, accelerators, limits, *((_ROWS, value) if of == "context_length" else (value, _TOKENS)))
        for value in (found.value, more)
    )
    planner.undispatch(model)
    return fine, above


def _ran(model: Any, accelerators: Accelerators, limits: Mapping[Any, int], rows: int, tokens: int) -> bool:
    """Whether a prompt of all the context runs."""
    gc.collect()
    gc.disable()
    held = [accelerators.memory_limit_bytes(index, size) for index, size in limits.items()]
    try:
        for limit in held:
            limit.__enter__()
        given = torch.ones((rows, tokens), dtype=torch.long, device=0)
        with torch.no_grad():
            model(input_ids=given, use_cache=True, logits_to_keep=1)
    except torch.OutOfMemoryError:
        return False
    finally:
        for limit in held:
            limit.__exit__(None, None, None)
        gc.enable()
        gc.collect()
    return True
