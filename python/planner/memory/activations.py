"""What layers need while they run, at most, from a configuration alone: for where nothing can be recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from planner.memory.cache_parts import item_bytes
from planner.memory.config_values import Config, decoder_config, first_of, plain_heads, query_heads, width
from planner.settings.workload import Workload

# Over what a layer holds at once as its code reads: copies of operators, rotated keys, views made contiguous.
_ALLOWANCE: Final = 1.25
# generate() at most, by rows times words: scores in float32, their sorted copies and sums.
_GENERATED_FLOATS: Final = 6.2
_WORDS: Final = ("vocab_size",)
_INNER: Final = (
    "intermediate_size",
    "ffn_dim",
    "n_inner",
    "d_ff",
    "d_inner",
    "ffn_hidden_size",
    "encoder_ffn_dim",
)
_CHOSEN: Final = ("num_experts_per_tok", "top_k", "moe_topk", "num_selected_experts")
_EXPERT_INNER: Final = (
    "moe_intermediate_size",
    "expert_ffn_hidden_size",
    "intermediate_size",
    "ffn_hidden_size",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSizes:
    """One forward, in numbers.

    Args:
        rows: sequences, beams included.
        new_tokens: of each, in this forward.
        seen_tokens: of each, with those before.
    """

    rows: int
    new_tokens: int
    seen_tokens: int


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
    """An upper estimate of what one forward needs, from the configuration.

    Args:
        config: what ``config.json`` holds.
        workload: kernel, padding and logits.
        sizes: of the forward.
        dtype: what the model computes in.

    Raises:
        UnknownMemoryError: the configuration leaves out what is needed.
    """
    decoder = decoder_config(config)
    item, tokens = item_bytes(dtype), sizes.rows * sizes.new_tokens
    hidden = width(decoder)
    scores = sizes.rows * sizes.new_tokens * sizes.seen_tokens
    is_whole = workload.attention_kernel == "math"
    attention = item * tokens * 3 * hidden + _attention_bytes(decoder, sizes, item, is_whole=is_whole)
    inner = 2 * 4 * tokens * hidden + _inner_bytes(decoder, tokens, hidden, item)
    words = first_of(decoder, *_WORDS)
    logits = (
        sizes.rows
        * (sizes.new_tokens if workload.logits == "all" else 1)
        * (words if type(words) is int else 0)
    )
    generated = (
        _GENERATED_FLOATS * 4 * sizes.rows * words if type(words) is int and workload.logits == "last" else 0
    )
    results = logits * item if workload.logits == "all" else 0
    has_mask = is_whole or workload.is_padded or workload.attention_kernel == "efficient"
    mask = scores * (1 + item) if has_mask else 0
    return Activations(
        layer_bytes=int(_ALLOWANCE * max(attention, inner)),
        shared_bytes=int(
            _ALLOWANCE * (mask + tokens * (hidden // max(1, query_heads(decoder)) * 2 * item + 8))
        ),
        first_bytes=int(_ALLOWANCE * tokens * (hidden * item + 16) + generated + results),
        plain_bytes=int(_ALLOWANCE * tokens * hidden * (2 * item + 8)),
        last_bytes=int(_ALLOWANCE * (tokens * hidden * (item + 8) + logits * (item + 4))),
    )


def _attention_bytes(decoder: Config, sizes: ForwardSizes, item: int, *, is_whole: bool) -> int:
    heads, asking = plain_heads(decoder), query_heads(decoder)
    tokens, seen = sizes.rows * sizes.new_tokens, sizes.rows * sizes.seen_tokens
    each = heads.key_width + heads.value_width
    rotated = tokens * (3 * asking * each + 3 * heads.count * each) * item
    # Kernels that take as many key heads as query heads are given copies; latents are expanded to all heads.
    is_latent = decoder.get("kv_lora_rank") is not None
    expanded = (
        seen * asking * each * item * (3 if is_latent else 1) if is_latent or asking != heads.count else 0
    )
    scores = sizes.new_tokens * seen * asking
    return rotated + expanded + (int(1.5 * scores * (2 * item + 4)) if is_whole else 0)


def _inner_bytes(decoder: Config, tokens: int, hidden: int, item: int) -> int:
    chosen = first_of(decoder, *_CHOSEN)
    inner = first_of(decoder, *_INNER)
    inner = inner if type(inner) is int else 4 * hidden
    dense = tokens * (3 * hidden + 3 * inner) * item
    if type(chosen) is not int:
        return dense
    expert = first_of(decoder, *_EXPERT_INNER)
    expert = expert if type(expert) is int else inner
    return max(dense, tokens * chosen * (3 * hidden + 4 * expert) * item + tokens * 4 * hidden * item)
