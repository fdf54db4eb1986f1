"""What the cache of one layer is made of, and how many bytes that is at any length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from planner.choices import Cache
from planner.errors import InvalidInputError

Phase: TypeAlias = Literal["prefill", "decode"]
Extent: TypeAlias = Literal["once", "tokens", "window", "encoder", "rest"]

ITEM_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "float64": 8,
        "float32": 4,
        "float16": 2,
        "bfloat16": 2,
        "int64": 8,
        "float8_e4m3fn": 1,
        "float8_e5m2": 1,
        "int8": 1,
        "uint8": 1,
    }
)
"""Bytes of an element, for the types that caches are kept in."""

COUNTER_BYTES: Final = 8  # an int64 beside the keys, on their device


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePart:
    """One tensor of a layer's cache.

    Args:
        elements: of each sequence at each place.
        extent: how many places there are: "once", one for each of the "tokens", for those in a "window", for each token of the
            "encoder", or for the "rest" that does not fill a stride yet.
        window_tokens: how many tokens a step sees, the new one included; of a "window", and of an encoder's in a static cache.
        stride_tokens: how many tokens share a place.
        extra_tokens: places beside those of the tokens, such as a learnt prompt's.
        since_tokens: how many tokens it takes until it is there.
        dtype: its element type; None where it is that of the cache.
    """

    elements: int
    extent: Extent = "tokens"
    window_tokens: int = 0
    stride_tokens: int = 1
    extra_tokens: int = 0
    since_tokens: int = 0
    dtype: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """The parts of one layer's cache.

    Args:
        kind: what sort of layer it is.
        parts: its tensors.
        counters: numbers on the device that a growing cache has beside them.
        static_counters: those that a static one has.
        has_static: whether there is a static cache of this kind.
        is_offloadable: whether an offloaded cache brings it to the cpu.
    """

    kind: str
    parts: tuple[CachePart, ...] = ()
    counters: int = 0
    static_counters: int = 0
    has_static: bool = True
    is_offloadable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSizes:
    """What a cache is asked for.

    Args:
        phase: "prefill": after one forward of all tokens; "decode": after a forward of the last of them.
        batch_size: sequences, beams included.
        tokens: of each sequence, the last one included; of a static cache those that it is made for.
        encoder_tokens: those of an encoder.
        item_bytes: bytes of an element.
        cache: how it is kept.
    """

    phase: Phase
    batch_size: int
    tokens: int
    encoder_tokens: int
    item_bytes: int
    cache: Cache


def item_bytes(dtype: str) -> int:
    """Bytes of one element of a cache.

    Raises:
        InvalidInputError: no type that a cache is kept in.
    """
    if dtype not in ITEM_BYTES:
        raise InvalidInputError(
            f"no cache is kept in {dtype!r}; known are {', '.join(sorted(ITEM_BYTES))}", dtype=dtype
        )
    return ITEM_BYTES[dtype]


def layout_bytes(layout: CacheLayout, sizes: CacheSizes) -> int:
    """Bytes of the storages of one layer's cache."""
    counters = layout.static_counters if sizes.cache == "static" else layout.counters
    return counters * COUNTER_BYTES + sum(_part_bytes(part, sizes) for part in layout.parts)


def _part_bytes(part: CachePart, sizes: CacheSizes) -> int:
    each = ITEM_BYTES[part.dtype] if part.dtype else sizes.item_bytes
    return sizes.batch_size * part.elements * _places(part, sizes) * each


def _places(part: CachePart, sizes: CacheSizes) -> int:
    if sizes.tokens < part.since_tokens:
        return 0
    if part.extent == "once":
        return 1
    is_static = sizes.cache == "static"
    if part.extent == "encoder":
        has_window = is_static and part.window_tokens > 0
        return min(sizes.encoder_tokens, part.window_tokens) if has_window else sizes.encoder_tokens
    # After a prefill a layer looks at the last tokens of all, and the storage of all stays until the next step.
    is_stepped = sizes.phase == "decode" or is_static
    if part.extent == "rest":
        return (sizes.tokens - 1) % part.stride_tokens + 1 if is_stepped else sizes.tokens
    # Of a window of one token it keeps "the last 0", which is all of them.
    is_cut = is_static or part.window_tokens > 1
    if part.extent == "window" and is_stepped and is_cut:
        return min(sizes.tokens, part.window_tokens)
    return sizes.tokens // part.stride_tokens + part.extra_tokens
