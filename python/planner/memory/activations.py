"""An upper bound of what a forward holds beside weights and caches, from a configuration alone.

A recording is exact; this is for where torch and transformers are not at hand. Each term is what the plainest implementation
has alive at once, and a quarter is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
from planner.settings.workload import Workload

_SAFETY: Final = (5, 4)
_FLOAT_BYTES: Final = 4  # normalisation, rotation and softmax are computed in float32
_INDEX_BYTES: Final = 8
# generate() at most, by rows times words: scores in float32, their sorted copies and sums.
_GENERATED_FLOATS: Final = 6.2
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


# Of each token that generate() has: ids, mask and positions, and copies of them while they grow; with beams also tables of these.
_KEPT_BYTES: Final = 48
_KEPT_WITH_BEAMS_BYTES: Final = 96


def kept_token_bytes(workload: Workload) -> int:
    """What ``generate()`` keeps of all tokens where the inputs lie, beside the model: ids, masks, positions, beams.

    Source: measured with transformers 5.23: 48 bytes a row and token greedily, 89 with three beams, for 32 to 256 tokens.
    """
    each_bytes = _KEPT_BYTES if workload.num_beams == 1 else _KEPT_WITH_BEAMS_BYTES
    return workload.rows * workload.context_length * each_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSizes:
    """One forward, in numbers.

    Args:
        rows: sequences, beams included.
        new_tokens: of each, in this sizes.
        seen_tokens: of each, with those before.
    """

    rows: int
    new_tokens: int
    seen_tokens: int

    @property
    def tokens(self) -> int:
        """New tokens of all sequences."""
        return self.rows * self.new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """What parts of a model need at once, in bytes.

    Args:
        layer_bytes: of one layer, without the copy of its cache.
        shared_bytes: what all layers are given: masks and positions.
        first_bytes: where the inputs are, and what comes out of generating.
        last_bytes: where the logits are computed.
        plain_bytes: of what is no layer: norms, embeddings.
    """

    layer_bytes: int
    shared_bytes: int
    first_bytes: int
    last_bytes: int
    plain_bytes: int


def activations(config: Config, workload: Workload, sizes: ForwardSizes, dtype: str) -> Activations:
    """An upper bound of what one forward needs beyond weights and caches, from the configuration.

    Args:
        config: what ``config.json`` holds, with what it leaves out filled in.
        workload: kernel and logits.
        sizes: of the sizes.
        dtype: what the model computes in, by torch's name.

    Raises:
        UnknownMemoryError: the configuration leaves out what is needed.
    """
    decoder = decoder_config(config)
    item, hidden = item_bytes(dtype), width(decoder)
    has_scores = workload.attention_kernel == "math" or decoder.get("has_fused_attention") is False
    around = sizes.tokens * hidden * (4 * item + 3 * _FLOAT_BYTES)
    mixers = [_mixer(own, kind, sizes, item, has_scores=has_scores) for kind, own in _sorts(decoder).items()]
    words = first_of(decoder, *_WORDS) or first_of(config, *_WORDS) or 0
    logits = sizes.rows * (sizes.new_tokens if workload.logits == "all" else 1) * words
    generated = 0
    if workload.logits == "last":
        generated = int(_GENERATED_FLOATS * _FLOAT_BYTES * sizes.rows * words) + kept_token_bytes(workload)
    results = logits * item if workload.logits == "all" else 0
    return Activations(
        layer_bytes=_safely(around + max([*mixers, _mlp(decoder, sizes, item)])),
        shared_bytes=_safely(_shared(decoder, sizes, item)),
        first_bytes=_safely(around + sizes.tokens * _INDEX_BYTES) + generated + results,
        last_bytes=_safely(around + logits * (item + _FLOAT_BYTES)),
        plain_bytes=_safely(around),
    )


def _sorts(decoder: Config) -> dict[str, Config]:
    """One layer of each type, with the values that it has for itself."""
    over = decoder.get("per_layer_config") or {}
    return {
        kind: {**decoder, **(over.get(str(index)) or {})} for index, kind in enumerate(layer_types(decoder))
    }


def _safely(count: int) -> int:
    return count * _SAFETY[0] // _SAFETY[1]


def _mixer(config: Config, kind: str, sizes: ForwardSizes, item: int, *, has_scores: bool) -> int:
    """Attention, or what stands in its place."""
    if kind == "none":
        return 0
    total = 0
    if kind in ("linear_attention", "conv") or kind.startswith("hybrid"):
        total += _states(config, sizes)
    if kind not in ("linear_attention", "conv"):
        total += _attention(config, kind, sizes, item, has_scores=has_scores)
    return total


def _attention(config: Config, kind: str, sizes: ForwardSizes, item: int, *, has_scores: bool) -> int:
    asking = query_heads(config)
    kept = cached_heads(config, kind)
    heads = _expanded(config, kept, asking)
    key, value = heads.key_width, heads.value_width
    asked = sizes.tokens * asking * (4 * key + 2 * value) * item
    # Keys and values of all tokens for each head that asks; whoever plans adds the copy that a growing cache makes. Latents are
    # expanded, and then cut and put together anew.
    each = sizes.rows * sizes.seen_tokens * asking * (key + value)
    copies = 2 if heads is not kept else int(asking != heads.count)
    if not has_scores:
        return asked + copies * each * item
    # The mathematical path takes keys and values as float32, too, and scales the keys.
    floats = 2 * (each + sizes.tokens * asking * key) * _FLOAT_BYTES
    scores = sizes.rows * asking * sizes.new_tokens * sizes.seen_tokens * (3 * _FLOAT_BYTES + 1)
    return asked + copies * each * item + floats + scores


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


def _states(config: Config, sizes: ForwardSizes) -> int:
    """Convolutions and scans, whose sums are kept in float32: what one token has, several times over, and the states."""
    parts = state_parts(config)
    state = sum(part.elements for part in parts) * _FLOAT_BYTES * 4 * sizes.rows
    inner = max(part.elements for part in parts) if len(parts) == 1 else parts[0].elements
    return state + sizes.tokens * (inner * 4 + width(config) * 4) * _FLOAT_BYTES


def _mlp(config: Config, sizes: ForwardSizes, item: int) -> int:
    inner = first_of(config, *_INNER)
    inner = max(inner) if isinstance(inner, list | tuple) else inner
    dense = sizes.tokens * 4 * (inner if type(inner) is int else 4 * width(config)) * item
    if first_of(config, *_EXPERTS) is None:
        return dense
    chosen = first_of(config, *_CHOSEN)
    chosen = chosen if type(chosen) is int else 1
    each = first_of(config, *_EXPERT_INNER)
    each = each if type(each) is int else 4 * width(config)
    shared = first_of(config, *_SHARED)
    copies = sizes.tokens * chosen * (5 * each + 3 * width(config)) * item
    besides = sizes.tokens * (shared if type(shared) is int else 0) * 4 * each * item
    routing = sizes.tokens * _experts(config) * 4 * _FLOAT_BYTES
    return max(dense, copies + besides + routing)


def _experts(config: Config) -> int:
    """How many experts a layer has; 0 for a model without."""
    found = first_of(config, *_EXPERTS)
    found = max(found) if isinstance(found, list | tuple) and found else found
    return found if type(found) is int else 0


def _shared(config: Config, sizes: ForwardSizes, item: int) -> int:
    """A mask for each sort of layer, while it is made, and positions with their rotation."""
    sorts = len({kind for kind in layer_types(config) if kind != "none"})
    mask = sizes.rows * sizes.new_tokens * sizes.seen_tokens * (item + 2) * max(sorts, 1)
    angles = sizes.tokens * width(config) * 2 * (item + _FLOAT_BYTES)
    return mask + angles + 4 * sizes.rows * sizes.seen_tokens * _INDEX_BYTES
