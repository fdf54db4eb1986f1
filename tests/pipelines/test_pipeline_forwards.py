"""Tokens are the whole model's also where a class's own code for generating, a checkpoint's settings, or the longest row has a say."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from pipelines.ranks import run_ranks
from pipelines.stage_models import save
from pipelines.whole import LEFT_PADDED, Whole, saved

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    "num_hidden_layers": 5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LONG["original_max_position_embeddings"] = 8  # reached between the first new token and the last
FAMILIES: dict[str, Any] = {
    "falcon_mamba": lambda: tf.FalconMambaForCausalLM(
        tf.FalconMambaConfig(hidden_size=32, vocab_size=64, state_size=8, num_hidden_layers=5)
    ),
    "recurrent_gemma": lambda: tf.RecurrentGemmaForCausalLM(
        tf.RecurrentGemmaConfig(**{**SIZES, "intermediate_size": 96}, lru_width=32, head_dim=8)
    ),
    "phi3": lambda: tf.Phi3ForCausalLM(
        tf.Phi3Config(
            **SIZES, rope_parameters=LONG, original_max_position_embeddings=8, max_position_embeddings=32
        )
    ),
    "llama": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(**SIZES, rope_parameters=LONG, max_position_embeddings=32)
    ),
}
FREE = {"max_new_tokens": 7, "eos_token_id": None}
RIGHT_PADDED = {
    "ids": [[11, 23, 5, 42, 0, 0, 0], [9, 31, 7, 18, 50, 3, 26]],
    "attention_mask": [[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]],
}


@functools.cache
def made(name: str) -> Whole:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[name]()
        with (
            torch.no_grad()
        ):  # as far apart as trained ones: otherwise the same few tokens come whatever goes wrong
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.05))
        folder = save(model).folder
    return Whole(folder, tf.AutoModelForCausalLM.from_pretrained(folder).eval())


def piped(whole: Whole, calls: Sequence[dict[str, Any]], **opened: Any) -> Any:
    """Tokens of each call, the same on both ranks."""
    ranks = run_ranks(
        "generate",
        2,
        folder=str(whole.folder),
        opened={"stages": (2, 3), "timeout_s": 30, **opened},
        calls=calls,
    )
    assert [rank.code for rank in ranks] == [0, 0], ranks[0].log + ranks[1].log
    assert ranks[0].value["tokens"] == ranks[1].value["tokens"]
    return ranks[0].value["tokens"]


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_class_does_between_its_forwards(name: str, microbatches: int) -> None:
    """Mambas hide their mask after the prompt, and Phi-3 begins anew where its positions get longer; states of RecurrentGemma lie in its
    modules; angles of long positions go by the longest row."""
    whole = made(name)
    calls = [{**LEFT_PADDED, **FREE}, {**RIGHT_PADDED, **FREE}, {"ids": [[5, 6, 7, 8]], **FREE}]
    found = piped(whole, calls, microbatches=microbatches)
    # A model of its own for each call: what one leaves in its modules would be in the next.
    wanted = [
        Whole(whole.folder, tf.AutoModelForCausalLM.from_pretrained(whole.folder).eval()).tokens(call)
        for call in calls
    ]
    assert found == [tokens.tolist() for tokens in wanted]


def test_padding_that_ids_say_themselves() -> None:
    call = {"ids": LEFT_PADDED["ids"], **FREE, "pad_token_id": 0}
    whole = saved("llama")
    wanted = whole.tokens({**call, "attention_mask": LEFT_PADDED["attention_mask"]})
    others = {**call, "eos_token_id": [0]}  # what ends a row may stand anywhere
    unpadded = whole.tokens({**others, "attention_mask": [[1] * 7] * 2})
    assert piped(whole, [call, others]) == [wanted.tolist(), unpadded.tolist()]


@pytest.mark.parametrize(
    "said",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 1, "forced_eos_token_id": 9},
        {"suppress_tokens": list(range(8, 64)), "min_new_tokens": 4, "begin_suppress_tokens": [5, 6]},
    ],
    ids=str,
)
@pytest.mark.parametrize("how", [{}, {"do_sample": True, "seed": 3, "top_k": 9}], ids=str)
def test_settings_of_the_checkpoint_for_scores(
    said: dict[str, Any], how: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(saved("llama").folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(said))
    whole = Whole(tmp_path / "model", tf.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval())
    call = {**LEFT_PADDED, "max_new_tokens": 7, "eos_token_id": [2, 3], "pad_token_id": 0, **how}
    wanted = whole.tokens(call).tolist()
    assert wanted != saved("llama").tokens(call).tolist()
    assert piped(whole, [call]) == [wanted]
