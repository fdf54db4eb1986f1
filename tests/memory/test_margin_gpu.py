"""Whether the default of ``allocator_margin`` holds on a real card: what its caching allocator holds is within the plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from margins_held import llama, planned, require_margin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
    "max_position_embeddings": 8192,
}


@contextmanager
def limited(size_bytes: int) -> Iterator[None]:
    """The card has so many bytes more than are held now, for this process."""
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    allowed_bytes = torch.cuda.memory_reserved(0) + size_bytes
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed_bytes / total_bytes), 0)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)


@pytest.mark.parametrize("offloaded", [False, True], ids=["resident", "offloaded"])
@pytest.mark.parametrize(("prompt", "batch"), [(128, 1), (1024, 4), (4096, 1)])
def test_the_default_margin_holds(prompt: int, batch: int, offloaded: bool) -> None:
    """In no more than was planned it runs, and holds no more, through a prompt and forty steps."""
    model = llama(**SIZES)
    plan = planned(model, prompt, batch, offloaded=offloaded, kernel="fused")
    assert bool(plan.offloaded_bytes["cpu"]) == offloaded
    held_bytes, planned_bytes = require_margin(model, plan, limited)
    assert held_bytes <= planned_bytes
