"""Bytes of a model's cache by layer, from its configuration alone.

What counts is storage, not shape: a window that was cut out of a prompt keeps the whole prompt until the next step, and a
recurrent state is kept in float32 whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from planner.choices import Cache
from planner.errors import InvalidInputError, UnknownMemoryError
from planner.memory.attention_heads import cached_heads, cross_heads
from planner.memory.cache_parts import (
    CacheLayout,
    CachePart,
    CacheSizes,
    Extent,
    Phase,
    item_bytes,
    layout_bytes,
)
from planner.memory.config_values import CachedHeads, Config, decoder_config, first_of, model_type, needed
from planner.memory.encoders import keeps_cache
from planner.memory.layer_types import layer_types
from planner.memory.measured_types import MEASURED_TYPES
from planner.memory.special_layouts import special_layouts
from planner.memory.states import hybrid_states, state_parts

_INDEXED_IN_FLOAT: Final = frozenset({"dots3_note", "dots3_note_text"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """What one layer keeps from forward to forward.

    Args:
        kind: "full", "window", "indexed", "linear", "hybrid", …; "none" for a layer that keeps nothing or reads another's.
        bytes: of its storages.
        is_offloadable: whether an offloaded cache brings it to the cpu.
        resting_bytes: what it takes there then: of a window no more than that, whatever its storage was cut from.
    """

    kind: str
    bytes: int
    is_offloadable: bool = False
    resting_bytes: int = 0


def cache_bytes(
    config: Config,
    *,
    phase: Phase,
    batch_size: int,
    tokens: int,
    encoder_tokens: int = 0,
    dtype: str,
    cache: Cache = "dynamic",
) -> int:
    """Bytes that a model's cache takes.

    Args:
        config: what ``config.json`` holds, with what it leaves out filled in.
        phase: "prefill": after one forward of all tokens; "decode": after a forward of the last of them.
        batch_size: sequences, beams included.
        tokens: of each sequence, the last one included; of a static cache, those that it is made for.
        encoder_tokens: tokens of the encoder's input, where a model has an encoder.
        dtype: what keys and values are kept in, by torch's name.
        cache: how they are kept; of an "offloaded" one, what is on the device at once if it runs every layer.

    Returns:
        Bytes of storage, each storage once. 0 for a model without a cache.

    Raises:
        UnknownMemoryError: the type of the model or of a layer is not known, or the configuration leaves out what is needed.
        InvalidInputError: a count that is negative or no integer, an element type that no cache is kept in, or a static cache
            for layers that have none.

    Source:
        The classes of cache_utils.py in transformers 5.23; ``benches/sweep_caches.py`` compares with their storages.

    Example:
        >>> llama = {"model_type": "llama", "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        ...          "hidden_size": 8192}
        >>> cache_bytes(llama, phase="prefill", batch_size=1, tokens=32768, dtype="bfloat16") / 2**30
        10.0
    """
    layers = layer_caches(
        config,
        phase=phase,
        batch_size=batch_size,
        tokens=tokens,
        encoder_tokens=encoder_tokens,
        dtype=dtype,
        cache=cache,
    )
    return resident_bytes(layers) if cache == "offloaded" else sum(layer.bytes for layer in layers)


def layer_caches(
    config: Config,
    *,
    phase: Phase,
    batch_size: int,
    tokens: int,
    encoder_tokens: int = 0,
    dtype: str,
    cache: Cache = "dynamic",
) -> tuple[LayerCache, ...]:
    """The same by layer, in the order of the decoder's layers; arguments and errors as of :func:`cache_bytes`.

    Returns:
        An entry for each layer; none where nothing is cached. Of an "offloaded" cache all bytes of each layer, wherever they lie.
    """
    _check_counts(batch_size=batch_size, tokens=tokens, encoder_tokens=encoder_tokens)
    each = item_bytes(dtype)
    if cache == "none" or not keeps_cache(config):
        return ()
    _require_measured(config)
    return computed_caches(
        config,
        CacheSizes(
            phase=phase,
            batch_size=batch_size,
            tokens=tokens,
            encoder_tokens=encoder_tokens,
            item_bytes=each,
            cache=cache,
        ),
    )


def computed_caches(config: Config, sizes: CacheSizes) -> tuple[LayerCache, ...]:
    """The same for a model of any type, whether a real cache of that type was ever measured or not."""
    if not keeps_cache(config):
        return ()
    layouts = layer_layouts(config)
    _check_static(layouts, sizes.cache, config)
    return tuple(
        LayerCache(
            kind=layout.kind,
            bytes=layout_bytes(layout, sizes),
            is_offloadable=layout.is_offloadable,
            resting_bytes=_resting_bytes(layout, sizes) if layout.is_offloadable else 0,
        )
        for layout in layouts
    )


def _resting_bytes(layout: CacheLayout, sizes: CacheSizes) -> int:
    """What is copied is what the next step looks at: of a window, all but the token that it drops; no counters."""
    parts = tuple(replace(part, window_tokens=max(part.window_tokens - 1, 0)) for part in layout.parts)
    return layout_bytes(replace(layout, parts=parts, counters=0), replace(sizes, phase="decode"))


def resident_bytes(layers: tuple[LayerCache, ...]) -> int:
    """What an offloaded cache has on a device that runs these layers: two that follow each other, the first after the last, and
    those that it does not offload."""
    moved = [layer.bytes for layer in layers if layer.is_offloadable]
    stays = sum(layer.bytes for layer in layers if not layer.is_offloadable)
    if len(moved) < 3:
        return stays + sum(moved)
    return stays + max(one + other for one, other in pairwise([*moved, moved[0]]))


def has_encoder(config: Config) -> bool:
    """Whether a decoder looks at what an encoder has seen: as the configuration says, or as it is made of both."""
    said = config.get("is_encoder_decoder")
    if said is None:
        return all(isinstance(config.get(part), Mapping) for part in ("encoder", "decoder"))
    return bool(said)


def layer_layouts(config: Config) -> tuple[CacheLayout, ...]:
    """What each layer of a decoder keeps.

    Raises:
        UnknownMemoryError: a layer's type is not known, or the configuration leaves out what is needed.
    """
    decoder = decoder_config(config)
    special = special_layouts(decoder)
    if special is not None:
        return special
    over = decoder.get("per_layer_config") or {}
    layouts = []
    for index, kind in enumerate(layer_types(decoder)):
        own = over.get(str(index)) or over.get(index) or {}
        layouts.append(_layout({**decoder, **own} if own else decoder, kind, index))
    if model_type(decoder) == "longcat_flash":  # two attentions in each layer, with a cache each
        layouts = [layout for layout in layouts for _ in range(2)]
    if has_encoder(config):
        layouts = [_with_cross(decoder, layout) for layout in layouts]
    return tuple(layouts)


def _require_measured(config: Config) -> None:
    kind = model_type(decoder_config(config))
    if kind not in MEASURED_TYPES:
        said = f"a model of type {kind}" if kind else "a model whose configuration says no model_type"
        raise UnknownMemoryError(
            f"the cache of {said} is not known: its class may keep anything; a recording tells it, where torch and transformers are "
            "installed and have the class",
            model_type=kind,
            unknown=kind or "model_type",
        )


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if type(count) is not int or count < (0 if name == "encoder_tokens" else 1):
            raise InvalidInputError(f"{name} is a count, got {count!r}", name=name, value=count)


def _layout(config: Config, kind: str, index: int) -> CacheLayout:
    if kind == "none":
        return CacheLayout(kind="none")
    if kind in ("linear_attention", "conv"):
        return CacheLayout(kind="linear", parts=state_parts(config))
    attention = kind.removeprefix("hybrid_") + "_attention" if kind.startswith("hybrid_") else kind
    attention = "full_attention" if kind == "hybrid" else attention
    layout = _attention(config, attention, index)
    if kind.startswith("hybrid"):
        states = hybrid_states(config, cached_heads(config, attention))
        return replace(layout, kind="hybrid", parts=(*layout.parts, *states), is_offloadable=True)
    return layout


def _attention(config: Config, kind: str, index: int) -> CacheLayout:
    heads = cached_heads(config, kind)
    if kind == "full_attention":
        return CacheLayout(kind="full", parts=_keys_and_values(heads), static_counters=1, is_offloadable=True)
    if kind in ("sliding_attention", "chunked_attention"):
        name = "attention_chunk_size" if kind == "chunked_attention" else "sliding_window"
        window = needed(config, name, "sliding_window_size")
        if window < 1:
            raise UnknownMemoryError(
                f"the configuration of {model_type(config)} has {name} = {window}, which is no window",
                model_type=model_type(config),
                unknown=name,
            )
        return CacheLayout(
            kind="window",
            parts=_keys_and_values(heads, "window", window),
            counters=1,
            static_counters=1,
            is_offloadable=True,
        )
    if kind == "indexed_attention":
        return _indexed(config, heads, index)
    raise UnknownMemoryError(
        f"layer {index} of a model of type {model_type(config)} is of type {kind}, whose cache is not known: "
        "a recording tells it, where torch and transformers are installed",
        model_type=model_type(config),
        unknown=kind,
    )


def _keys_and_values(heads: CachedHeads, extent: Extent = "tokens", window: int = 0) -> tuple[CachePart, ...]:
    return tuple(
        CachePart(elements=heads.count * each, extent=extent, window_tokens=window)
        for each in (heads.key_width, heads.value_width)
    )


def _indexed(config: Config, heads: CachedHeads, index: int) -> CacheLayout:
    """DeepSeek's sparse attention: an indexer has keys of its own, unless it uses those of an earlier layer."""
    kinds = config.get("indexer_types")
    is_shared = isinstance(kinds, list | tuple) and index < len(kinds) and kinds[index] == "shared"
    dtype = "float32" if model_type(config) in _INDEXED_IN_FLOAT else None
    indexer = () if is_shared else (CachePart(elements=_indexer_width(config), dtype=dtype),)
    return CacheLayout(
        kind="indexed",
        parts=(*_keys_and_values(heads), *indexer),
        static_counters=1 + len(indexer),
        is_offloadable=True,
    )


def _indexer_width(config: Config) -> int:
    """Elements that an indexer keeps of a token."""
    if (
        first_of(config, "index_kpool") is not None
    ):  # pools need a gate for each element, too, and whether the token counts
        return 2 * needed(config, "index_head_dim") + 1
    if first_of(config, "indexer_head_dim") is not None:
        return needed(config, "indexer_kv_heads") * needed(config, "indexer_head_dim")
    return needed(config, "index_head_dim")


def _with_cross(config: Config, layout: CacheLayout) -> CacheLayout:
    # A static cache of the encoder's keys is made as the decoder's own is, windows included.
    window = next((part.window_tokens for part in layout.parts), 0)
    cross = _keys_and_values(cross_heads(config), "encoder", window)
    return replace(
        layout,
        kind=f"{layout.kind} and cross",
        parts=(*layout.parts, *cross),
        static_counters=layout.static_counters + 1,
    )


def _check_static(layouts: tuple[CacheLayout, ...], cache: Cache, config: Config) -> None:
    if cache == "static" and not all(layout.has_static for layout in layouts):
        name = model_type(decoder_config(config))
        raise InvalidInputError(
            f"cache='static' does not exist for a model of type {name}: its layers have none; cache='dynamic' does",
            cache=cache,
            model_type=name,
        )
