"""Closed forms against the storage of real caches: a few classes of each sort; `benches/sweep_caches.py` has them all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benches"))

import sweep_caches

CLASSES = {
    "full": "LlamaForCausalLM",
    "window": "Gemma3ForCausalLM",
    "chunked": "Llama4ForCausalLM",
    "latent": "DeepseekV3ForCausalLM",
    "indexed": "DeepseekV32ForCausalLM",
    "states": "MambaForCausalLM",
    "states and keys": "Qwen3NextForCausalLM",
    "hybrid": "FalconH1ForCausalLM",
    "convolutions": "Lfm2ForCausalLM",
    "cross": "T5ForConditionalGeneration",
    "compressed": "DeepseekV4ForCausalLM",
    "one head": "GPTBigCodeForCausalLM",
}


@pytest.mark.parametrize("name", CLASSES.values(), ids=CLASSES)
def test_storage_of_the_real_cache(name: str) -> None:
    record = sweep_caches.record_of(name)
    found = record["runs"]
    assert found["dynamic float32"] == found["dynamic bfloat16"] == sweep_caches.EQUAL, found
    assert not list(sweep_caches.differing([record])), found


@pytest.mark.sweep
def test_storage_of_every_real_cache() -> None:
    records = [sweep_caches.record_of(name) for name in sweep_caches.cache_models.names()]
    totals = sweep_caches.totals(records)
    assert totals["dynamic float32: differ"] == totals["static bfloat16: differ"] == 0
    assert totals["dynamic float32: equal"] >= 218
    assert totals["dynamic bfloat16: equal"] >= 194
    assert totals["static float32: equal"] >= 188
