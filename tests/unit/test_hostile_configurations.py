"""Configurations that say what makes no sense: a workload is refused in words, and soon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import planner
from planner import UnknownMemoryError
from tiny_models import built

ROOM: dict[Any, int] = {0: 1 << 26}


@pytest.mark.parametrize(
    ("name", "value"),
    [("vocab_size", "many"), ("intermediate_size", []), ("num_hidden_layers", 10**30)],
    ids=lambda each: str(each)[:20],
)
def test_values_that_make_no_sense(tmp_path: Path, name: str, value: Any) -> None:
    model: Any = built("llama")
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    # Of a class that transformers has not, so that nothing is recorded.
    said = {**json.loads(file.read_text()), "architectures": ["OtherForCausalLM"], name: value}
    file.write_text(json.dumps(said))
    with pytest.raises(UnknownMemoryError, match=r"of .*(makes no sense|says that it has)"):
        planner.plan(tmp_path, max_memory=ROOM, workload={"context_length": 16})
