"""Bytes of caches by closed form: against the storage of real ones, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

import planner
from planner.checkpoint.cache_config import completed_config
from planner.memory.cache_layers import cache_bytes, layer_caches, resident_bytes
from planner.memory.header_check import head_notes

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
}
WINDOWS = {
    **SMALL,
    "model_type": "gemma3_text",
    "head_dim": 16,
    "sliding_window": 16,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
}


def bytes_of(config: Mapping[str, Any], **given: Any) -> int:
    asked = {"phase": "prefill", "batch_size": 1, "tokens": 40, "dtype": "float32", **given}
    return cache_bytes(config, **asked)


def test_keys_and_values_of_every_token() -> None:
    assert bytes_of(SMALL) == 4 * 2 * (2 * 16) * 40 * 4
    assert bytes_of(SMALL, dtype="bfloat16", batch_size=3) == 3 * bytes_of(SMALL) // 2


def test_a_window_keeps_the_whole_prompt_until_the_next_step() -> None:
    each = 2 * (2 * 16) * 4
    assert bytes_of(WINDOWS) == 4 * each * 40 + 3 * 8
    assert bytes_of(WINDOWS, phase="decode", tokens=41) == 3 * (each * 16 + 8) + each * 41
    assert bytes_of(WINDOWS, cache="static") == 3 * each * 16 + each * 40 + 4 * 8


def test_states_are_kept_in_float32_whatever_the_model_computes_in() -> None:
    mamba = {"model_type": "mamba", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
             "state_size": 16, "conv_kernel": 4}  # fmt: skip
    assert bytes_of(mamba, dtype="bfloat16") == 2 * 128 * (4 * 2 + 16 * 4)
    assert bytes_of(mamba, tokens=4096) == bytes_of(mamba, tokens=1)


def test_latents_are_kept_and_not_what_they_expand_to() -> None:
    latent = {
        **SMALL,
        "model_type": "deepseek_v3",
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    }
    assert bytes_of(latent) == 4 * (32 + 8) * 40 * 4


def test_an_offloaded_cache_has_two_layers_on_the_device() -> None:
    layers = layer_caches(SMALL, phase="prefill", batch_size=1, tokens=40, dtype="float32", cache="offloaded")
    assert len(layers) == 4
    assert bytes_of(SMALL, cache="offloaded") == resident_bytes(layers) == bytes_of(SMALL) // 2


def test_no_cache_is_no_bytes() -> None:
    assert bytes_of(SMALL, cache="none") == 0
    assert layer_caches(SMALL, phase="decode", batch_size=1, tokens=1, dtype="float32", cache="none") == ()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"tokens": 0}, "tokens"),
        ({"batch_size": -1}, "batch_size"),
        ({"tokens": 1.5}, "tokens"),
        ({"encoder_tokens": -1}, "encoder_tokens"),
        ({"dtype": "int3"}, "int3"),
    ],
)
def test_counts_and_types_that_make_no_sense(given: dict[str, Any], named: str) -> None:
    with pytest.raises(planner.InvalidInputError, match=named):
        bytes_of(SMALL, **given)


def test_a_layer_of_an_unknown_type_is_named_and_not_guessed() -> None:
    with pytest.raises(
        planner.UnknownMemoryError, match="layer 1 of a model of type llama is of type spiral"
    ):
        bytes_of({**SMALL, "layer_types": ["full_attention", "spiral", "full_attention", "full_attention"]})


def test_a_value_that_is_left_out_is_named() -> None:
    without = {key: value for key, value in SMALL.items() if key != "num_hidden_layers"}
    with pytest.raises(planner.UnknownMemoryError, match="does not say"):
        bytes_of(without)


def test_a_class_without_a_static_cache() -> None:
    minimax = {**SMALL, "model_type": "minimax", "layer_types": ["full_attention", "linear_attention"] * 2}
    assert bytes_of(minimax) > 0
    with pytest.raises(planner.InvalidInputError, match="cache='static'"):
        bytes_of(minimax, cache="static")


def test_what_a_file_leaves_out_comes_from_the_table() -> None:
    written = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_size": 2560,
        "sliding_window": 512,
    }
    filled = completed_config(written)
    assert filled["head_dim"] == 256
    assert filled["layer_types"] == (["sliding_attention"] * 5 + ["full_attention"]) * 2
    assert "head_dim" not in written


def test_a_rule_for_layers_that_no_pattern_tells_is_asked_for() -> None:
    with pytest.raises(planner.UnknownMemoryError, match="layer_types"):
        completed_config(
            {"architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "num_hidden_layers": 8}
        )


def test_a_window_that_is_not_wanted_is_none() -> None:
    qwen = {**SMALL, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "sliding_window": 8,
            "max_window_layers": 2}  # fmt: skip
    assert bytes_of(completed_config({**qwen, "use_sliding_window": False})) == bytes_of(SMALL)
    wanted = completed_config({**qwen, "use_sliding_window": True})
    kinds = [
        layer.kind for layer in layer_caches(wanted, phase="prefill", batch_size=1, tokens=9, dtype="float32")
    ]
    assert kinds == ["full", "full", "window", "window"]


def test_weights_with_other_heads_are_told() -> None:
    name = "model.layers.{}.self_attn.{}_proj.weight"
    right = {name.format(layer, which): [32, 64] for layer in range(4) for which in "kv"}
    assert head_notes(SMALL, right) == ()
    (note,) = head_notes(SMALL, {**right, name.format(2, "k"): [64, 64]})
    assert "64 rows" in note and "2 heads of 16" in note
    assert head_notes(SMALL, {"vision_tower.layers.0.self_attn.k_proj.weight": [8, 8]}) == ()


def test_torch_is_not_loaded() -> None:
    program = (
        "import json, sys\n"
        "from planner.memory.cache_layers import cache_bytes\n"
        "from planner.checkpoint.cache_config import completed_config\n"
        f"config = completed_config(json.loads({json.dumps(json.dumps(SMALL))}))\n"
        "print(cache_bytes(config, phase='prefill', batch_size=1, tokens=40, dtype='float32'))\n"
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == [str(bytes_of(SMALL)), "[]"]


@pytest.mark.parametrize("kind", ["internlm2", "my_llama", ""])
def test_a_model_of_an_unknown_type_is_refused_by_its_name(kind: str) -> None:
    """Code that comes with a checkpoint may keep anything, whatever its configuration looks like."""
    with pytest.raises(planner.UnknownMemoryError, match=kind or "no model_type") as caught:
        bytes_of({**SMALL, "model_type": kind})
    assert caught.value.model_type == kind
    inside = {"model_type": "llava", "text_config": {**SMALL, "model_type": kind}}
    with pytest.raises(planner.UnknownMemoryError):
        bytes_of(inside)
    assert bytes_of({**SMALL, "model_type": kind}, cache="none") == 0


def test_the_decoder_of_several_parts_however_deep() -> None:
    one = {"model_type": "llava", "text_config": SMALL}
    assert bytes_of(one) == bytes_of({"model_type": "outer", "thinker_config": one}) == bytes_of(SMALL)


def test_an_encoder_keeps_nothing() -> None:
    for kind in ("bert", "modernbert", "deberta-v2", "distilbert"):
        assert bytes_of({**SMALL, "model_type": kind}) == 0
    assert bytes_of({**SMALL, "model_type": "bert", "is_decoder": True}) > 0
    both = {"model_type": "encoder-decoder", "encoder": SMALL, "decoder": {**SMALL, "model_type": "bert"}}
    assert bytes_of(both, encoder_tokens=7) == 0
    told = {**both, "decoder": {**both["decoder"], "is_decoder": True}}
    assert bytes_of(told, encoder_tokens=7) == 4 * 2 * (2 * 16) * (40 + 7) * 4


def test_a_window_of_one_token_keeps_all() -> None:
    """transformers keeps "the last 0" of them, which Python takes for all."""
    one = {**WINDOWS, "sliding_window": 1, "layer_types": ["sliding_attention"] * 4}
    assert bytes_of(one, phase="decode") == bytes_of(one)
    assert bytes_of(one, cache="static") == 4 * (2 * (2 * 16) * 4 + 8)
    with pytest.raises(planner.UnknownMemoryError, match="no window"):
        bytes_of({**one, "sliding_window": 0})


def test_heads_that_are_repeated_before_they_are_kept() -> None:
    falcon = {**SMALL, "model_type": "falcon", "num_kv_heads": 2, "multi_query": False}
    del falcon["num_key_value_heads"]
    assert bytes_of({**falcon, "new_decoder_architecture": True}) == 2 * bytes_of(SMALL)
    assert bytes_of({**falcon, "multi_query": True}) == bytes_of(SMALL) // 2


def test_heads_for_an_encoder_of_their_own() -> None:
    dia = {
        **SMALL,
        "model_type": "llama",
        "is_encoder_decoder": True,
        "cross_num_key_value_heads": 4,
        "cross_head_dim": 8,
    }
    assert bytes_of(dia, encoder_tokens=10) - bytes_of(dia) == 4 * 2 * (4 * 8) * 10 * 4


def test_latents_of_which_nothing_is_rotated() -> None:
    latent = {**SMALL, "model_type": "deepseek_v3", "kv_lora_rank": 32, "qk_rope_head_dim": 0}
    assert bytes_of(latent) == 4 * 32 * 40 * 4


@pytest.mark.parametrize("wrong", [{"head_dim": 0}, {"num_attention_heads": 0}])
def test_heads_without_elements_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(planner.UnknownMemoryError, match="attention heads"):
        bytes_of({**SMALL, **wrong})


def test_a_file_that_says_of_the_whole_what_its_decoder_has() -> None:
    flat = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "hidden_size": 64,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    assert bytes_of(completed_config(flat)) == bytes_of(SMALL)
    assert "text_config" not in flat


def test_a_decoder_that_a_file_does_not_name_is_that_of_the_class() -> None:
    """With what the class of the whole gives it; a file that says sizes beside it has said none of the decoder."""
    part = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    named = {"model_type": "mistral", "num_key_value_heads": 8, "sliding_window": 4096, **sizes}
    assert bytes_of(completed_config({**part, "text_config": sizes})) == bytes_of(named)
    with pytest.raises(planner.UnknownMemoryError):
        bytes_of(completed_config({**part, **sizes}))
