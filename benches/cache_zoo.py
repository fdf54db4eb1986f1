"""Small models of transformers classes whose caches are measured: windows shorter than the prompt, layers of every kind."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

import model_zoo
import tiny_zoo
from planner.memory.encoders import UNLESS_DECODERS

WINDOW, CHUNK = 16, 12

# Beside the kinds that the other sweeps have.
MORE_KINDS = ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES")

# What shrinking by name alone gets wrong, and what makes the first few layers have every kind that a class has.
GIVEN: dict[str, dict[str, Any]] = {
    "BltForCausalLM": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_hash_byte_group_size": [3],
        "patching_mode": "space",
    },
    "BambaForCausalLM": {
        "attn_layer_indices": [1],
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_n_groups": 2,
        "hidden_size": 64,
    },
    "ChameleonForConditionalGeneration": {"vocabulary_map": {"<image>": 5}},
    "DbrxForCausalLM": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}},
    "DeepseekV2ForCausalLM": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "Dots1ForCausalLM": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "FalconH1ForCausalLM": {"mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 2},
    "GPTNeoForCausalLM": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "FlaubertWithLMHeadModel": {"emb_dim": 64, "n_heads": 4, "n_layers": 3},
    "Gemma3nForCausalLM": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 16,
    },
    "Gemma4ForCausalLM": {
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 16,
        "num_kv_shared_layers": 0,
        "global_head_dim": 32,
    },
    "Emu3ForConditionalGeneration": {"vocabulary_map": {"<image>": 5}},
    "Glm5NextForConditionalGeneration": {"text_config": {"index_topk": 64}},
    "GraniteMoeHybridForCausalLM": {
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_n_groups": 2,
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "hidden_size": 64,
    },
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "Mamba2ForCausalLM": {"num_heads": 4, "head_dim": 32, "n_groups": 2, "hidden_size": 64},
    "NemotronForCausalLM": {"num_key_value_heads": 2},
    "NemotronHForCausalLM": {"n_groups": 2, "mamba_num_heads": 4, "mamba_head_dim": 32},
    "ZambaForCausalLM": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "n_mamba_heads": 2,
    },
    "XmodForCausalLM": {"default_language": "en_XX", "is_decoder": True},
    "Qwen4ExpForCausalLM": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 32,
        "indexer_compress_ratio": 8,
        "ple_embed_dim": 64,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 1,
    },
    "XLMWithLMHeadModel": {"emb_dim": 64, "n_heads": 4, "n_layers": 3},
    "Zamba2ForCausalLM": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "mamba_ngroups": 2,
        "n_mamba_heads": 4,
        "mamba_headdim": 32,
    },
    "xLSTMForCausalLM": {
        "hidden_size": 64,
        "embedding_dim": 64,
        "num_heads": 4,
        "num_blocks": 3,
        "qk_dim_factor": 1.0,
    },
}


class NotMeasuredError(Exception):
    """A class whose cache cannot be had, with why."""


def names() -> list[str]:
    """Classes whose models are generated from, each once, sorted."""
    found = set(model_zoo.names())
    for table in MORE_KINDS:
        for value in getattr(modeling_auto, table).values():
            named = [value] if isinstance(value, str) else value
            known = (name for name in named if hasattr(transformers, name))
            found.update(name for name in known if getattr(transformers, name).can_generate())
    return sorted(found)


def shorten_windows(config: Any, depth: int = 0) -> None:
    """Windows shorter than the prompt, here and in the configurations inside."""
    for key, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type") and depth < 4:
            shorten_windows(value, depth + 1)
        elif re.fullmatch(r"sliding_window(_size)?|window_size|attention_window_size", key):
            if type(value) is int and value > WINDOW:
                setattr(config, key, WINDOW)
        elif key == "attention_chunk_size" and type(value) is int:
            setattr(config, key, CHUNK)


def mix_layers(config: Any, depth: int = 0) -> None:
    """Layers of every kind that the class has by default, where the first few are not, here and inside."""
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type") and depth < 4:
            mix_layers(value, depth + 1)
    types = getattr(config, "layer_types", None)
    if isinstance(types, list) and types:
        kinds = list(dict.fromkeys(getattr(type(config)(), "layer_types", None) or ()))
        if set(kinds) - set(types):
            config.layer_types = [kinds[number % len(kinds)] for number in range(len(types))]


def given_for(name: str) -> dict[str, Any]:
    """Arguments that a class's configuration does not go without here."""
    is_told = getattr(transformers, name).config_class.model_type in UNLESS_DECODERS
    told = {"is_decoder": True} if is_told and not name.endswith("ForMaskedLM") else {}
    return {**told, **model_zoo.MISSING.get(name, {}), **GIVEN.get(name, {})}


def mend_sections(config: Any, depth: int = 0) -> None:
    """Sections of rotations that add up to the width of the shrunk heads, here and inside."""
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type") and depth < 4:
            mend_sections(value, depth + 1)
    ropes = getattr(config, "rope_parameters", None)
    heads = vars(config).get("num_attention_heads")
    if depth and isinstance(ropes, dict) and isinstance(heads, int) and "rope_theta" in ropes:
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        half = int(width * (ropes.get("partial_rotary_factor") or 1)) // 2
        ropes["mrope_section"] = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]


def small_config(config_class: Any, given: dict[str, Any], level: int) -> Any:
    """A configuration shrunk by the names of its values, with these against that, here and inside."""
    inner = {key: value for key, value in given.items() if key in getattr(config_class, "sub_configs", {})}
    outer = {key: value for key, value in given.items() if key not in inner}
    small = tiny_zoo.shrunk(config_class, outer, level, {})
    return config_class(**{**small, **{key: {**small.get(key, {}), **value} for key, value in inner.items()}})


def build(name: str) -> Any:
    """A model of this class with random weights and short windows."""
    errors = []
    for level in (0, 1):
        try:
            cls = getattr(transformers, name)
            config = small_config(cls.config_class, given_for(name), level)
            shorten_windows(config)
            mix_layers(config)
            mend_sections(config)
            with torch.device("meta"):
                count = sum(parameter.numel() for parameter in cls(config).parameters())
            if count > tiny_zoo.MOST_PARAMETERS:
                raise NotMeasuredError(f"too large: {count} parameters")
            torch.manual_seed(0)
            model = cls(config).eval()
            if model._can_set_experts_implementation():
                model.set_experts_implementation("eager")  # the default needs an operator of accelerators
            if hasattr(model, "set_default_language"):
                model.set_default_language("en_XX")
            return model
        except Exception as error:
            errors.append(error)
    raise errors[0]
