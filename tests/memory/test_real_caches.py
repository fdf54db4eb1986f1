"""Closed forms against the storage of real caches: a few classes of each sort; `benches/sweep_caches.py` has them all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benches"))

import sweep_caches
from planner.memory.measured_types import MEASURED_TYPES

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
    "two states and keys": "ZambaForCausalLM",
    "pictures": "IdeficsForVisionText2Text",
    "boxes": "UdopForConditionalGeneration",
    "sound": "MoonshineForConditionalGeneration",
}


@pytest.mark.parametrize("name", CLASSES.values(), ids=CLASSES)
def test_storage_of_the_real_cache(name: str) -> None:
    record = sweep_caches.record_of(name)
    found = record["runs"]
    assert found["dynamic float32"] == found["dynamic bfloat16"] == sweep_caches.EQUAL, found
    assert not list(sweep_caches.differing([record])), found


PARTS = 8
_found: list[sweep_caches.Record] = []


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(PARTS))
def test_storage_of_every_real_cache(part: int) -> None:
    records = [sweep_caches.record_of(name) for name in sweep_caches.cache_zoo.names()[part::PARTS]]
    _found.extend(records)
    for record in records:
        assert not [what for what in record["runs"].values() if "instead of" in what], record
        assert not record["notes"], record
        is_known = record["type"] in MEASURED_TYPES
        assert is_known or sweep_caches.EQUAL not in record["runs"].values(), record


@pytest.mark.sweep
def test_how_many_caches_are_known() -> None:
    if len(_found) < len(sweep_caches.cache_zoo.names()):
        pytest.skip("counts of all parts, which are run before")
    totals = sweep_caches.totals(_found)
    assert totals["dynamic float32: equal"] >= 218
    assert totals["dynamic bfloat16: equal"] >= 194
    assert totals["static float32: equal"] >= 188
