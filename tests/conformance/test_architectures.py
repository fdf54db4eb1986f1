"""The table of architectures says what the installed transformers says."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from planner.checkpoint.architecture import class_of_type, known_architecture

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "python/planner/checkpoint/architectures.jsonl"
# One for each way in which lines differ: dense, tied, fused, two kinds of layers, several parts, encoder and decoder.
SAMPLE = (
    "BertForMaskedLM",
    "DeepseekV3ForCausalLM",
    "GPT2LMHeadModel",
    "Gemma3ForConditionalGeneration",
    "JambaForCausalLM",
    "LlamaForCausalLM",
    "LlavaForConditionalGeneration",
    "MixtralForCausalLM",
    "Qwen2VLForConditionalGeneration",
    "T5ForConditionalGeneration",
)


@pytest.fixture(scope="module")
def writer() -> Iterator[Any]:
    """The script that makes the table."""
    sys.path.insert(0, str(ROOT / "benches"))
    try:
        module = importlib.import_module("write_architectures")
        before = module.model_zoo.MOST_LAYERS
        module.model_zoo.MOST_LAYERS = module.MOST_LAYERS
        yield module
        module.model_zoo.MOST_LAYERS = before
    finally:
        sys.path.remove(str(ROOT / "benches"))


def lines() -> dict[str, Any]:
    records = [json.loads(line) for line in TABLE.read_text().splitlines()]
    return {record["name"]: record for record in records[1:]}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_line_is_what_transformers_says(writer: Any, name: str) -> None:
    assert lines()[name] == json.loads(json.dumps(writer.record(name)))


@pytest.mark.sweep
def test_every_line_is_what_transformers_says(writer: Any) -> None:
    different = [
        name for name, line in lines().items() if line != json.loads(json.dumps(writer.record(name)))
    ]
    assert different == []


def test_the_table_is_of_the_version_that_tests_compare_with() -> None:
    assert json.loads(TABLE.read_text().splitlines()[0])["version"] == transformers.__version__


def test_every_line_can_be_read() -> None:
    for name, record in lines().items():
        found = known_architecture(name)
        assert found is not None
        assert found.forms[0][0] == name
        assert all(
            0 <= form < len(found.forms)
            for _, _, children, _ in found.forms
            for _, forms in children
            for form in forms
        )
        assert {len(rule.when) for rule in found.ties} <= {3, 9}, record["ties"]


def test_a_type_without_a_class_has_one() -> None:
    assert class_of_type("llama") == "LlamaForCausalLM"
    assert class_of_type("t5") == "T5ForConditionalGeneration"
    assert class_of_type("nobodys") is None
    assert known_architecture("NobodysModel") is None
