"""The test of the allocator's margin on a real card, rehearsed: it runs what it says, in the memory that it says."""

from __future__ import annotations

import pytest
import torch

from margins_held import llama, planned, require_margin
from rig import Accelerators

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


@pytest.mark.parametrize("offloaded", [False, True], ids=["resident", "offloaded"])
def test_it_runs_in_what_is_planned(virtual_accelerators: Accelerators, offloaded: bool) -> None:
    model = llama(**SIZES)
    plan = planned(model, 16, 2, offloaded=offloaded, kernel="math")
    assert bool(plan.offloaded_bytes["cpu"]) == offloaded

    def limited(size_bytes: int) -> object:
        return virtual_accelerators.memory_limit_bytes(0, virtual_accelerators.used_bytes(0) + size_bytes)

    held_bytes, planned_bytes = require_margin(model, plan, limited)  # type: ignore[arg-type]
    assert 0 < held_bytes <= planned_bytes


def test_it_does_not_run_in_less(virtual_accelerators: Accelerators) -> None:
    model = llama(**SIZES)
    plan = planned(model, 16, 2, offloaded=False, kernel="math")

    def limited(size_bytes: int) -> object:
        return virtual_accelerators.memory_limit_bytes(
            0, virtual_accelerators.used_bytes(0) + size_bytes * 4 // 5
        )

    with pytest.raises(torch.OutOfMemoryError):
        require_margin(model, plan, limited)  # type: ignore[arg-type]
