"""Formulas for caches that others use, beside which ours is held: the textbook's and hf-mem's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from planner.errors import PlannerError
from planner.memory.config_values import decoder_config, depth, plain_heads

HF_MEM_VERSION: Final = "0.5.6"
_ANSWERED: Final = ("ForCausalLM", "ForConditionalGeneration")
_FULL: Final = ("attention", "full_attention", "global_attention")
_NEEDED: Final = ("hidden_size", "num_hidden_layers", "num_attention_heads")


def textbook_bytes(config: Mapping[str, Any], *, batch_size: int, tokens: int, item_bytes: int) -> int | None:
    """Two for each layer, head, element and token, as it is in textbooks; None where the configuration does not say these."""
    try:
        decoder = decoder_config(config)
        heads = plain_heads(decoder)
        return 2 * depth(decoder) * heads.count * heads.key_width * tokens * batch_size * item_bytes
    except PlannerError:
        return None


def hf_mem_bytes(config: Mapping[str, Any], *, batch_size: int, tokens: int, item_bytes: int) -> int | None:
    """What hf-mem answers for a ``config.json``; None where it has no answer.

    Source: ``compute_safetensors_kv_cache_size`` and what ``arun`` gives it, hf-mem 0.5.6.
    """
    named = "".join(config.get("architectures") or ())
    if not any(ending in named for ending in _ANSWERED):
        return None
    if _ANSWERED[1] in named and "text_config" in config:
        config = config["text_config"]
    if not all(isinstance(config.get(key), int) for key in _NEEDED):
        return None
    asking, layers = config["num_attention_heads"], config["num_hidden_layers"]
    heads = config.get("num_key_value_heads", asking)
    width = config.get("head_dim", config["hidden_size"] // asking)
    pattern = config.get("sliding_window_pattern", 0)
    types = config.get("layer_types", ())
    if not all(isinstance(each, int) for each in (heads, width, pattern)) or types is None:
        return None  # it multiplies what it finds, and null cannot be
    full = layers
    if "sliding_window_pattern" in config:
        full = layers // pattern
    elif "layer_types" in config:
        full = sum(kind in _FULL for kind in types)
    # Of a model with windows alone the window; where some layers have none, engines keep all tokens of all layers.
    window = tokens if full else min(config.get("sliding_window") or tokens, tokens)
    places = full * tokens + (layers - full) * window
    return int(2 * places * heads * width * item_bytes * batch_size)
