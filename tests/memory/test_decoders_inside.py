"""What a file leaves out of a decoder's part is filled in as the class of the whole model does it, which may not be the decoder's own."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benches"))

import cache_defaults
import planner.checkpoint
from planner.checkpoint.cache_config import completed_config
from planner.errors import UnknownMemoryError
from planner.memory.cache_layers import layer_layouts

TABLE = Path(planner.checkpoint.__path__[0]) / "architectures.jsonl"
SIZES = {"num_hidden_layers": 7, "num_attention_heads": 8, "hidden_size": 256}


def inside() -> Iterator[tuple[str, dict[str, Any]]]:
    """Classes whose decoder is a part, and what the table has of it."""
    for line in TABLE.read_text().splitlines():
        record = json.loads(line)
        defaults = record.get("cache_defaults")
        if defaults and defaults["path"]:
            yield record["name"], defaults


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.sweep)], ids=["some", "all"])
def test_parts_are_completed_as_their_whole_does_it(step: int) -> None:
    warnings.simplefilter("ignore")
    every = dict(inside())
    own = [f"{name}ForConditionalGeneration" for name in ("Mistral3", "PaliGemma", "Voxtral")]
    known = {name: every[name] for name in [*own, *list(every)[::step]]}
    wrong, refused = [], []
    for name, defaults in known.items():
        path, said = tuple(defaults["path"]), {"model_type": defaults["model_type"], **SIZES}
        try:
            whole = cache_defaults.values_of(cache_defaults.within(name, path, said))
        except Exception:  # a class that takes no such sizes
            refused.append(name)
            continue
        file: dict[str, Any] = said
        for key in reversed(path):
            file = {key: file}
        try:
            filled: Any = completed_config({**file, "architectures": [name]})
            for key in path:
                filled = filled[key]
            if layer_layouts(filled) != layer_layouts(whole):
                wrong.append(name)
        except UnknownMemoryError:
            refused.append(name)
    assert not wrong
    assert len(refused) < len(known) / 4, refused
