"""What attention keeps of a token: heads and their widths, by what classes do with their configuration."""

from __future__ import annotations

from dataclasses import replace

from planner.memory.config_values import (
    CachedHeads,
    Config,
    first_of,
    model_type,
    needed,
    plain_heads,
    query_heads,
)


def cached_heads(config: Config, kind: str) -> CachedHeads:
    """Heads of keys and values, as a layer of this type keeps them.

    Raises:
        UnknownMemoryError: the configuration leaves out what is needed.
    """
    if config.get("kv_lora_rank") and type(config.get("qk_rope_head_dim")) is int:
        # Latents and the rotated part of the key, for all heads at once; they are expanded at each step and not kept so. That part
        # is empty where nothing is rotated.
        return CachedHeads(
            count=1,
            key_width=needed(config, "kv_lora_rank"),
            value_width=needed(config, "qk_rope_head_dim"),
        )
    heads = plain_heads(config)
    name = model_type(config)
    if name == "falcon":
        return replace(heads, count=_falcon_heads(config))
    if name == "gpt_bigcode":
        return replace(heads, count=1 if config.get("multi_query", True) else query_heads(config))
    if name == "mimo_v2_flash":
        return _mimo(config, heads, kind)
    return heads


def cross_heads(config: Config) -> CachedHeads:
    """Heads of keys and values of what an encoder has seen: the decoder's own, unless it has others for them."""
    heads = cached_heads(config, "full_attention")
    count = first_of(config, "cross_num_key_value_heads", "cross_num_attention_heads")
    each = first_of(config, "cross_head_dim")
    return CachedHeads(
        count=heads.count if count is None else count,
        key_width=heads.key_width if each is None else each,
        value_width=heads.value_width if each is None else each,
    )


def _falcon_heads(config: Config) -> int:
    if config.get("new_decoder_architecture"):
        return query_heads(config)  # its keys are repeated for all that ask before they are kept
    return 1 if config.get("multi_query", True) else query_heads(config)


def _mimo(config: Config, heads: CachedHeads, kind: str) -> CachedHeads:
    """Windows with heads of their own."""
    if kind != "sliding_attention":
        return replace(heads, value_width=needed(config, "v_head_dim"))
    return CachedHeads(
        count=first_of(config, "swa_num_key_value_heads") or query_heads(config),
        key_width=first_of(config, "swa_head_dim") or heads.key_width,
        value_width=first_of(config, "swa_v_head_dim", "v_head_dim") or heads.value_width,
    )
