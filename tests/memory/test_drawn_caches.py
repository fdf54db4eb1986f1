"""Closed forms against the storage of real caches of drawn configurations: equal, or refused; never another number."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benches"))

import torch
import transformers
from drawn_configs import FAMILIES, Drawn, drawn

from cache_models import storage_bytes
from planner.checkpoint.cache_config import completed_config
from planner.errors import UnknownMemoryError
from planner.memory.cache_layers import cache_bytes, layer_layouts


@torch.no_grad()
def held_bytes(case: Drawn, cache: Any) -> tuple[int, int]:
    """Storage of the cache after a prompt and the steps, and how many tokens its encoder made."""
    model = case.model
    ids = torch.ones((case.batch_size, case.prompt_tokens), dtype=torch.long)
    given: dict[str, Any] = {"input_ids": ids}
    word = "input_ids"
    if case.encoder_tokens:
        word = "decoder_input_ids"
        given = {"input_ids": torch.ones((case.batch_size, case.encoder_tokens), dtype=torch.long), word: ids}
    if case.family == "speech_to_text":
        given["input_features"] = torch.ones((case.batch_size, case.encoder_tokens, 8))
        del given["input_ids"]
    key = "cache_params" if case.family == "mamba" else "past_key_values"
    out = model(**given, use_cache=True, **({} if cache is None else {key: cache}))
    if case.encoder_tokens:
        encoded = out.encoder_last_hidden_state
        given = {"encoder_outputs": (encoded,)}
    for _ in range(case.steps):
        out = model(**{**given, word: ids[:, :1], key: out[key]}, use_cache=True)
    seen = encoded.shape[1] if case.encoder_tokens else 0  # sound is shortened
    return storage_bytes(out[key]), seen


def configs(model: Any) -> list[Mapping[str, Any]]:
    """The configuration with all that it has, as a file has it, and as an old file has it: with what differs from defaults alone."""
    whole = json.loads(json.dumps(model.config.to_dict(), default=str))
    written = json.loads(model.config.to_json_string(use_diff=True))
    written["architectures"] = [type(model).__name__]
    found: list[Mapping[str, Any]] = [whole, completed_config(written)]
    try:
        found.append(completed_config(differing(model.config, written)))
        layer_layouts(found[-1])
    except (
        UnknownMemoryError
    ):  # it leaves out a size, or a rule for layers that its class has: asked for, and not guessed
        return found[:2]
    return found


def differing(config: Any, written: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says that its class does not have by default, here and inside."""
    default = type(config)()
    kept = {}
    for key, value in written.items():
        inner = getattr(config, key, None)
        if hasattr(inner, "to_dict") and isinstance(value, dict):
            kept[key] = differing(inner, value)
        elif (
            key in ("model_type", "architectures", "is_encoder_decoder")
            or getattr(default, key, None) != inner
        ):
            kept[key] = value
    return kept


def check(case: Drawn, *, is_static: bool = False) -> None:
    cache = None
    length = case.prompt_tokens + case.steps
    if is_static:
        length += 5
        cache = transformers.StaticCache(config=case.model.config, max_cache_len=length)
    held, encoder_tokens = held_bytes(case, cache)
    asked: dict[str, Any] = {
        "phase": "decode" if case.steps else "prefill",
        "batch_size": case.batch_size,
        "tokens": length,
        "encoder_tokens": encoder_tokens,
        "dtype": "float32",
        "cache": "static" if is_static else "dynamic",
    }
    for config in configs(case.model):
        found = cache_bytes(config, **asked)
        assert found == held, (case.family, found, held, case.batch_size, case.prompt_tokens, case.steps)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_drawn_model_keeps_what_is_computed(family: str) -> None:
    for seed in range(2):
        check(drawn(seed, family))


@pytest.mark.parametrize("family", ["gemma3", "llama", "qwen2", "lfm2"])
def test_a_drawn_static_cache_is_what_is_computed(family: str) -> None:
    check(drawn(3, family), is_static=True)


@pytest.mark.sweep
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_many_drawn_models(family: str) -> None:
    for seed in range(100, 160):
        check(drawn(seed, family))
