"""Pipelines of real processes beside the whole model, over many families, cuts, micro-batches and ways of choosing tokens; minutes."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from pipelines.ranks import run_ranks
from pipelines.whole import LEFT_PADDED, Whole
from planner.pipelines.shrinking import TINY_LAYERS, tiny_configurations

# What a default configuration leaves out.
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "Qwen3ForCausalLM": {"tie_word_embeddings": True},
    "GPT2LMHeadModel": {},
    "GPTNeoXForCausalLM": {},
    "OPTForCausalLM": {},
    "BloomForCausalLM": {},
    "FalconForCausalLM": {},
    "Gemma2ForCausalLM": {},
    "Gemma3ForCausalLM": {},
    "Phi3ForCausalLM": {"pad_token_id": 0},
    "Cohere2ForCausalLM": {},
    "Olmo2ForCausalLM": {},
    "GraniteForCausalLM": {},
    "Glm4ForCausalLM": {"pad_token_id": 0},
    "MixtralForCausalLM": {},
    "Qwen3MoeForCausalLM": {},
    "DeepseekV3ForCausalLM": {},
    "GptOssForCausalLM": {},
    "Qwen3NextForCausalLM": {},
}
CUTS = [(1, 5), (4, 2), (2, 1, 3), (1, 4, 1), (1, 2, 1, 2), (3, 1, 1, 1)]


@functools.cache
def small(name: str) -> Whole:
    """A saved model of a class, with few layers and random weights."""
    cls = getattr(tf, name)
    config = cls.config_class(**FAMILIES[name])
    folder = Path(tempfile.mkdtemp(prefix="pipeline_sweep_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = first_made(cls, config)
    model.save_pretrained(folder, max_shard_size="200KB")
    return Whole(folder, tf.AutoModelForCausalLM.from_pretrained(folder).eval())


def first_made(cls: Any, config: Any) -> Any:
    """With weights as far apart as trained ones: of those that a class makes, logits hardly differ."""
    torch.manual_seed(0)
    last: Exception | None = None
    for said in tiny_configurations(config, config.get_text_config().num_hidden_layers):
        try:
            with warnings.catch_warnings(action="ignore"):
                model = cls(cls.config_class(**said)).eval()
            model(torch.arange(3, 9)[None])
        except Exception as error:
            last = error
            continue
        assert model.config.num_hidden_layers == TINY_LAYERS
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
        return model
    raise AssertionError(f"{cls.__name__} could not be made small") from last


@functools.cache
def wanted(name: str) -> tuple[list[dict[str, Any]], list[list[list[int]]]]:
    """Calls, and the whole model's tokens for each."""
    whole, threads = small(name), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        free = {**LEFT_PADDED, "max_new_tokens": 8, "eos_token_id": None}
        tokens = whole.tokens(free)
        new = tokens[:, len(LEFT_PADDED["ids"][0]) :]
        calls = [
            free,
            {**free, "eos_token_id": [int(new[0, 2]), int(new[1, 5])], "pad_token_id": 1},
            {**free, "do_sample": True, "seed": 7, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
        ]
        return calls, [whole.tokens(call).tolist() for call in calls]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.sweep
@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("counts", CUTS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_rank_has_the_whole_models_tokens(
    name: str, counts: tuple[int, ...], microbatches: int
) -> None:
    calls, tokens = wanted(name)
    opened = {"stages": counts, "timeout_s": 60, "microbatches": microbatches}
    ranks = run_ranks("generate", len(counts), folder=str(small(name).folder), opened=opened, calls=calls)
    for rank in ranks:
        assert rank.code == 0, rank.log
        assert rank.value["tokens"] == tokens
        assert rank.value["caches_left"] == 0
