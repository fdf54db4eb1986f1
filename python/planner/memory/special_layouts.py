"""Caches of model types that have a layout of their own: no keys by head, or more than these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from planner.errors import UnknownMemoryError
from planner.memory.cache_parts import CacheLayout, CachePart
from planner.memory.config_values import Config, depth, model_type, needed, plain_heads, width
from planner.memory.layer_types import layer_types

_Layouts: TypeAlias = tuple[CacheLayout, ...]


def special_layouts(config: Config) -> _Layouts | None:
    """The layers of such a model; None for every other.

    Raises:
        UnknownMemoryError: the configuration leaves out what is needed, or no closed form is known.
    """
    made = _SPECIAL.get(model_type(config))
    return None if made is None else made(config)


def _xlnet(config: Config) -> _Layouts:
    """Hidden states of the last tokens, in the place of keys and values; of all where no length is said."""
    last = config.get("mem_len")
    part = CachePart(elements=width(config))
    if last:
        # The states of the last forward are put behind those, and what is cut off stays in the storage.
        part = CachePart(elements=width(config), extent="window", window_tokens=last + 1)
    return (CacheLayout(kind="hidden states", parts=(part,), has_static=False),) * depth(config)


def _rwkv(config: Config) -> _Layouts:
    """Two states in the type of the model, three for sums in float32."""
    inner = config.get("attention_hidden_size") or width(config)
    parts = (
        *(CachePart(elements=width(config), extent="once"),) * 2,
        *(CachePart(elements=inner, extent="once", dtype="float32"),) * 3,
    )
    return (CacheLayout(kind="linear", parts=parts, has_static=False),) * depth(config)


def _xlstm(config: Config) -> _Layouts:
    """A matrix, a vector and a number for each head, and one counter for all layers."""
    heads = needed(config, "num_heads")
    keys, values = (_xlstm_width(config, name, heads) for name in ("qk", "v"))
    parts = (CachePart(elements=heads * (keys * values + keys + 1), extent="once"),)
    layer = CacheLayout(kind="linear", parts=parts, has_static=False)
    first = CacheLayout(kind="linear", parts=parts, counters=1, has_static=False)
    return (first, *(layer,) * (needed(config, "num_blocks", "num_hidden_layers") - 1))


def _xlstm_width(config: Config, name: str, heads: int) -> int:
    """A head's share of the width, which is rounded up to 64."""
    said = config.get(f"{name}_head_dim")
    if type(said) is int:
        return said
    share = config.get(f"{name}_dim_factor") or {"qk": 0.5, "v": 1.0}[name]
    return int(-(-width(config) * share // 64)) * 64 // heads


def _cpmant(config: Config) -> _Layouts:
    """A learnt prompt before the words."""
    heads = needed(config, "num_attention_heads")
    elements = heads * needed(config, "dim_head", "attention_head_size")
    part = CachePart(elements=elements, extra_tokens=needed(config, "prompt_length"))
    # Its mask is as long as what it has seen, so that it does not run with a cache that is longer.
    return (CacheLayout(kind="full", parts=(part, part), has_static=False, is_offloadable=True),) * depth(
        config
    )


def _minimax(config: Config) -> _Layouts:
    """Keys by token in some layers, and a matrix for each head in the others; no static cache."""
    heads = plain_heads(config)
    keys = CachePart(elements=heads.count * heads.key_width)
    state = CachePart(elements=needed(config, "num_attention_heads") * heads.key_width**2, extent="once")
    full = CacheLayout(kind="full", parts=(keys, keys), has_static=False, is_offloadable=True)
    linear = CacheLayout(kind="linear", parts=(state,), has_static=False)
    return tuple(full if kind == "full_attention" else linear for kind in layer_types(config))


def _unlimited_ocr(config: Config) -> _Layouts:
    """The prompt, and a window over what follows: exact until the window is full, an upper bound from there."""
    heads = plain_heads(config)
    part = CachePart(elements=heads.count * heads.key_width)
    layout = CacheLayout(
        kind="reference", parts=(part, part), counters=1, static_counters=1, is_offloadable=True
    )
    return (layout,) * depth(config)


def _deepseek_v4(config: Config) -> _Layouts:
    """A window whose keys are its values, compressed keys of all tokens, and what is not compressed yet."""
    rates = config.get("compress_rates")
    layouts = []
    for kind in layer_types(config):
        if not isinstance(rates, Mapping) or (kind not in rates and kind != "sliding_attention"):
            raise UnknownMemoryError(
                f"the configuration of {model_type(config)} has no compress_rates for {kind}",
                model_type=model_type(config),
                unknown="compress_rates",
            )
        rate = int(rates.get(kind, 1))
        head = needed(config, "head_dim")
        keys = CachePart(elements=head, extent="window", window_tokens=needed(config, "sliding_window"))
        if kind == "sliding_attention":
            parts: tuple[CachePart, ...] = (keys, keys)
        elif kind == "heavily_compressed_attention":
            parts = (keys, *_compressed(head, head, rate))
        else:
            index = needed(config, "index_head_dim")
            overlaps = tuple(
                CachePart(elements=rate * each, extent="once", since_tokens=rate)
                for each in (head, head, index, index)
            )
            parts = (
                keys,
                *_compressed(head, 2 * head, rate),
                *_compressed(index, 2 * index, rate),
                *overlaps,
            )
        layouts.append(CacheLayout(kind="compressed", parts=parts, counters=1, has_static=False))
    return tuple(layouts)


def _compressed(elements: int, waiting: int, rate: int) -> tuple[CachePart, ...]:
    """One place for so many tokens, and keys and gates of the tokens that wait for their place to be full."""
    rest = CachePart(elements=waiting, extent="rest", stride_tokens=rate)
    return (CachePart(elements=elements, stride_tokens=rate), rest, rest)


def _unknown(config: Config) -> _Layouts:
    raise UnknownMemoryError(
        f"no closed form is known for the cache of a model of type {model_type(config)}: "
        "a recording tells it, where torch and transformers are installed",
        model_type=model_type(config),
        unknown="cache",
    )


_SPECIAL: Final[Mapping[str, Callable[[Config], _Layouts]]] = MappingProxyType(
    {
        "cpmant": _cpmant,
        "deepseek_v4": _deepseek_v4,
        "minimax": _minimax,
        "reformer": _unknown,  # buckets of hashes, whose number depends on the prompt
        "rwkv": _rwkv,
        "unlimited_ocr_text": _unlimited_ocr,
        "xlnet": _xlnet,
        "xlstm": _xlstm,
    }
)
