"""Caches that a workload asks for and a class does not make by itself, from transformers' own where the model's class has them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from planner.settings.workload import Workload

__all__ = ["cache_maker", "streaming_cache"]


def cache_maker(workload: Workload) -> Callable[[nn.Module], Any] | None:
    """What makes the cache that the first forward gets; None where a model makes its own.

    An offloaded cache does as transformers' own, without the streams that only accelerators have: before a layer is filled, the next one
    is brought, and afterwards it goes to the cpu. A cache of another dtype keeps what it gets in that, and hands it out as it came.
    """
    is_plain = workload.cache in ("dynamic", "none") and workload.cache_dtype is None
    return None if is_plain or workload.cache == "none" else lambda twin: _made(twin, workload)


def streaming_cache(model: Any) -> Any:
    """The offloaded cache of ``generate()``, which copies on a stream of a CUDA device."""
    config = model.config.get_text_config(decoder=True)
    return sys.modules["transformers.cache_utils"].DynamicCache(config=config, offloading=True)


def _made(twin: Any, workload: Workload) -> Any:
    own = _part(twin, workload, workload.context_length)
    if not getattr(twin.config, "is_encoder_decoder", False):
        return own
    cross = _part(twin, workload, workload.encoder_tokens)
    return sys.modules["transformers.cache_utils"].EncoderDecoderCache(own, cross)


def _part(twin: Any, workload: Workload, tokens: int) -> Any:
    utils = sys.modules["transformers.cache_utils"]
    base: Any = utils.StaticCache if workload.cache == "static" else utils.DynamicCache
    sizes = {"max_cache_len": tokens} if workload.cache == "static" else {}
    config = twin.config.get_text_config(decoder=True)
    if workload.cache != "offloaded" and workload.cache_dtype is None:
        return base(config=config, **sizes)
    made = _kept_otherwise(base)(config=config, **sizes)
    made.kept_dtype = None if workload.cache_dtype is None else getattr(torch, workload.cache_dtype)
    made.is_offloaded = workload.cache == "offloaded"
    return made


def _kept_otherwise(base: Any) -> Any:
    """The class of a cache whose layers are kept in another dtype, or on the cpu."""

    class KeptCache(base):  # type: ignore[misc]
        kept_dtype: torch.dtype | None = None
        is_offloaded = False
        only_non_sliding = False  # as of the cache that generate() makes
        prefetch_stream = nullcontext()

        def update(self, keys: Any, values: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            if self.layer_class_to_replicate is not None:
                while len(self.layers) <= layer_idx:
                    self.layers.append(self.layer_class_to_replicate())
            if self.is_offloaded:
                self.prefetch(layer_idx + 1, self.only_non_sliding)
            if self.kept_dtype is None:
                found = super().update(keys, values, layer_idx, *args, **kwargs)
            else:
                kept = super().update(
                    keys.to(self.kept_dtype), values.to(self.kept_dtype), layer_idx, *args, **kwargs
                )
                found = (kept[0].to(keys.dtype), kept[1].to(values.dtype))
            if self.is_offloaded:
                self.offload(layer_idx, self.only_non_sliding)
            return found

    return KeptCache
