"""An upper bound of what a forward holds beside weights and caches, from a configuration alone.

A recording is exact; this is for where torch and transformers are not at hand. Each term is what the plainest implementation
has alive at once, and a quarter is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from planner.choices import AttentionKernel, Logits
from planner.memory.attention_heads import cached_heads
from planner.memory.cache_parts import item_bytes
from planner.memory.config_values import (
    CachedHeads,
    Config,
    decoder_config,
    first_of,
    query_heads,
    width,
)
from planner.memory.layer_types import layer_types
from planner.memory.states import state_parts

_SAFETY: Final = (5, 4)
_FLOAT_BYTES: Final = 4  # normalisation, rotation and softmax are computed in float32
_INDEX_BYTES: Final = 8
_WORDS: Final = ("vocab_size", "n_words", "decoder_vocab_size")
_INNER: Final = (
    *(
        "intermediate_size",
        "decoder_ffn_dim",
        "ffn_dim",
        "d_ff",
        "n_inner",
        "ffn_hidden_size",
        "feed_forward_size",
    ),
    *("d_inner", "ffn_hidden_dim", "dim_ff", "hidden_dim", "inner_dim", "encoder_ffn_dim"),
)
_EXPERT_INNER: Final = (
    "moe_intermediate_size",
    "expert_ffn_hidden_size",
    "moe_ffn_hidden_size",
    "intermediate_size",
)
_CHOSEN: Final = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "top_k_experts",
    "moe_k",
    "top_k",
)
_EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_SHARED: Final = ("n_shared_experts", "num_shared_experts", "num_shared_expert")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationBounds:
    """What blocks need at most while they run, beyond weights and caches; arguments included.

    Args:
        layer_bytes: any layer of the decoder.
        embedding_bytes: the block with the word embedding.
        head_bytes: the block that makes logits.
        shared_bytes: masks and positions, which each device that runs anything holds once.
    """

    layer_bytes: int
    embedding_bytes: int
    head_bytes: int
    shared_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Forward:
    """One forward: sequences, new tokens of each, tokens with those before, and bytes of an element."""

    rows: int
    new: int
    seen: int
    item: int

    @property
    def tokens(self) -> int:
        return self.rows * self.new


def activation_bounds(
    config: Config,
    *,
    batch_size: int,
    new_tokens: int,
    context_tokens: int,
    dtype: str,
    logits: Logits = "last",
    attention_kernel: AttentionKernel = "fused",
    is_fused: bool = True,
) -> ActivationBounds:
    """Bytes that a forward needs at most beyond weights and caches.

    Args:
        config: what ``config.json`` holds, with what it leaves out filled in.
        batch_size: sequences, beams included.
        new_tokens: of each sequence, in this forward: the prompt's, or 1.
        context_tokens: of each sequence, with those that are cached.
        dtype: what the model computes in, by torch's name.
        logits: of the "last" token of each sequence, or of "all".
        attention_kernel: "math" holds all scores at once.
        is_fused: whether the class can leave attention to torch's kernels; one that cannot holds all scores, too.

    Returns:
        Bounds for one layer of each sort, of which one runs at a time on a device.

    Raises:
        UnknownMemoryError: the configuration leaves out what is needed.
    """
    decoder = decoder_config(config)
    forward = _Forward(rows=batch_size, new=new_tokens, seen=context_tokens, item=item_bytes(dtype))
    hidden = width(decoder)
    over = decoder.get("per_layer_config") or {}
    kinds = {
        (kind, str(index) in over): {**decoder, **(over.get(str(index)) or {})}
        for index, kind in enumerate(layer_types(decoder))
    }
    has_scores = not is_fused or attention_kernel == "math"
    mixers = [_mixer(own, kind, forward, has_scores) for (kind, _), own in kinds.items()]
    around = forward.tokens * hidden * (4 * forward.item + 3 * _FLOAT_BYTES)
    layer = around + max([*mixers, _mlp(decoder, forward)])
    words = first_of(decoder, *_WORDS) or first_of(config, *_WORDS) or 0
    asked = forward.rows * (forward.new if logits == "all" else 1)
    return ActivationBounds(
        layer_bytes=_safely(layer),
        embedding_bytes=_safely(around + forward.tokens * _INDEX_BYTES),
        head_bytes=_safely(around + asked * words * (forward.item + _FLOAT_BYTES)),
        shared_bytes=_safely(_shared(decoder, forward)),
    )


def _safely(count: int) -> int:
    return count * _SAFETY[0] // _SAFETY[1]


def _mixer(config: Config, kind: str, forward: _Forward, has_scores: bool) -> int:
    """Attention, or what stands in its place."""
    if kind == "none":
        return 0
    total = 0
    if kind in ("linear_attention", "conv") or kind.startswith("hybrid"):
        total += _states(config, forward)
    if kind not in ("linear_attention", "conv"):
        total += _attention(config, kind, forward, has_scores)
    return total


def _attention(config: Config, kind: str, forward: _Forward, has_scores: bool) -> int:
    asking = query_heads(config)
    heads = _expanded(config, cached_heads(config, kind), asking)
    key, value = heads.key_width, heads.value_width
    asked = forward.tokens * asking * (4 * key + 2 * value) * forward.item
    # Keys and values of all tokens: as they were, with the new ones behind them, and once for each head that asks.
    kept = 2 * forward.rows * forward.seen * heads.count * (key + value) * forward.item
    repeated = forward.rows * forward.seen * asking * (key + value)
    if not has_scores:
        return asked + kept + repeated * forward.item
    scores = forward.rows * asking * forward.new * forward.seen * (3 * _FLOAT_BYTES + 1)
    # The mathematical path repeats keys and values, takes them as float32, and scales the keys.
    floats = repeated * (forward.item + 2 * _FLOAT_BYTES) + forward.tokens * asking * key * 2 * _FLOAT_BYTES
    return asked + kept + floats + scores


def _expanded(config: Config, heads: CachedHeads, asking: int) -> CachedHeads:
    """The heads of latents, once they are expanded."""
    inner = first_of(config, "qk_nope_head_dim")
    if not config.get("kv_lora_rank") or type(inner) is not int:
        return heads
    return CachedHeads(
        count=asking,
        key_width=inner + (config.get("qk_rope_head_dim") or 0),
        value_width=first_of(config, "v_head_dim") or inner,
    )


def _states(config: Config, forward: _Forward) -> int:
    """Convolutions and scans, whose sums are kept in float32: what one token has, several times over, and the states."""
    parts = state_parts(config)
    state = sum(part.elements for part in parts) * _FLOAT_BYTES * 4 * forward.rows
    inner = max(part.elements for part in parts) if len(parts) == 1 else parts[0].elements
    return state + forward.tokens * (inner * 4 + width(config) * 4) * _FLOAT_BYTES


def _mlp(config: Config, forward: _Forward) -> int:
    inner = first_of(config, *_INNER)
    inner = max(inner) if isinstance(inner, list | tuple) else inner
    dense = forward.tokens * 4 * (inner if type(inner) is int else 4 * width(config)) * forward.item
    if first_of(config, *_EXPERTS) is None:
        return dense
    chosen = first_of(config, *_CHOSEN)
    chosen = chosen if type(chosen) is int else 1
    each = first_of(config, *_EXPERT_INNER)
    each = each if type(each) is int else 4 * width(config)
    shared = first_of(config, *_SHARED)
    copies = forward.tokens * chosen * (5 * each + 3 * width(config)) * forward.item
    besides = forward.tokens * (shared if type(shared) is int else 0) * 4 * each * forward.item
    routing = forward.tokens * _experts(config) * 4 * _FLOAT_BYTES
    return max(dense, copies + besides + routing)


def _experts(config: Config) -> int:
    """How many experts a layer has; 0 for a model without."""
    found = first_of(config, *_EXPERTS)
    found = max(found) if isinstance(found, list | tuple) and found else found
    return found if type(found) is int else 0


def _shared(config: Config, forward: _Forward) -> int:
    """A mask for each sort of layer, while it is made, and positions with their rotation."""
    sorts = len({kind for kind in layer_types(config) if kind != "none"})
    mask = forward.rows * forward.new * forward.seen * (forward.item + 2) * max(sorts, 1)
    angles = forward.tokens * width(config) * 2 * (forward.item + _FLOAT_BYTES)
    return mask + angles + 4 * forward.rows * forward.seen * _INDEX_BYTES
