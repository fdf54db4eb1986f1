"""What is needed where a model's inputs lie is counted there, whichever block runs there."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import planner
from planner.memory.recording.workloads import generation_bytes
from planner.settings.workload import Workload

WORDS, ROWS = 4096, 8
CONFIG = LlamaConfig(
    vocab_size=WORDS,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)


class NotRecorded(LlamaForCausalLM):
    """Its plans are by formula."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("this is not recorded")


@pytest.mark.parametrize(("kind", "method"), [(LlamaForCausalLM, "recorded"), (NotRecorded, "formula")])
def test_what_generating_takes_is_on_the_device_of_the_inputs(kind: Any, method: str) -> None:
    """The inputs go to the first accelerator, though what reads them is on the second."""
    workload: dict[str, Any] = {
        "context_length": 16,
        "prompt_length": 8,
        "batch_size": ROWS,
        "allocator_margin": 0,
    }
    said: dict[str, Any] = {
        "headroom": None,
        "workload": workload,
        "pin": {"model.embed_tokens": 1, "lm_head": 1, "model.layers": 0, "model.norm": 0},
    }
    model = kind(CONFIG)
    plan = planner.plan(model, max_memory={0: 1 << 24, 1: 1 << 24}, **said)
    assert plan.demands is not None
    assert plan.demands.method == method
    first = plan.devices[0]
    assert first.activation_bytes >= generation_bytes(model, Workload(**workload))
    with pytest.raises(planner.InfeasibleError):
        planner.plan(model, max_memory={0: first.peak_bytes - 1, 1: 1 << 24}, **said)
    planner.plan(model, max_memory={0: first.peak_bytes, 1: 1 << 24}, **said)
