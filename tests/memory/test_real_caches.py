"""Closed forms against the storage of real caches: a few classes of each sort; `benches/sweep_caches.py` has them all."""

from __future__ import annotations

import sys
from collections import Counter
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
    totals: Counter[str] = Counter()
    lines = list(sweep_caches.compare(name, totals))
    assert totals["dynamic float32: equal"] == totals["dynamic bfloat16: equal"] == 1, lines
    assert not [line for line in lines if "instead of" in line]


@pytest.mark.sweep
def test_storage_of_every_real_cache() -> None:
    totals: Counter[str] = Counter()
    for name in sweep_caches.model_zoo.names():
        list(sweep_caches.compare(name, totals))
    assert totals["dynamic float32: equal"] >= 218
    assert totals["dynamic bfloat16: equal"] >= 194
    assert totals["static float32: equal"] >= 188
