"""The cache of one stage: its class's own, which also answers for layers that only other stages have."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

__all__ = ["new_cache", "plain_cache"]


def new_cache(config: Any, kept: range, total: int) -> Any:
    """An empty cache for some of the layers that a configuration says.

    Args:
        config: of the whole model.
        kept: which of its layers.
        total: how many it has; a cache may have several for each.
    """
    found = _cache_class()(config=config)
    of_each = len(found.layers) // total  # 0 where they are made when they are met
    if of_each:
        found.layers = found.layers[kept.start * of_each : kept.stop * of_each]
    return found


def plain_cache(config: Any) -> Any:
    """The same for a whole model."""
    from transformers.cache_utils import DynamicCache

    return DynamicCache(config=config)


@cache
def _cache_class() -> type[Any]:
    """Made where transformers is loaded, whose class it is of."""
    from transformers.cache_utils import CacheLayerMixin, DynamicCache, LinearAttentionCacheLayerMixin

    class StageCache(DynamicCache):  # type: ignore[misc]
        """A cache that knows how many tokens have passed its stage.

        A model asks it for that, and for what its linear layers have seen, and its layers of that kind may be on other stages.
        """

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.seen_tokens = 0
            self.kept: dict[tuple[nn.Module, str], Any] = {}

        def count(self, tokens: int) -> None:
            """Notes a forward that is over."""
            self.seen_tokens += tokens

        def _counting(self, layer_idx: int) -> int | None:
            """The layer that tells lengths where one is asked for; None where there is none."""
            if layer_idx or not self.layers or isinstance(self.layers[0], CacheLayerMixin):
                return layer_idx
            numbers = (
                number for number, layer in enumerate(self.layers) if isinstance(layer, CacheLayerMixin)
            )
            return next(numbers, None)

        def get_seq_length(self, layer_idx: int = 0) -> int:
            found = self._counting(layer_idx)
            return self.seen_tokens if found is None else int(super().get_seq_length(found))

        def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
            found = self._counting(layer_idx)
            if found is None:
                return self.seen_tokens + query_length, 0
            sizes: tuple[int, int] = super().get_mask_sizes(query_length, found)
            return sizes

        def has_previous_state(self, layer_idx: int | None = None, *args: Any, **kwargs: Any) -> bool:
            is_linear = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in self.layers)
            if layer_idx is None and not is_linear:
                return self.seen_tokens > 0
            return bool(super().has_previous_state(layer_idx, *args, **kwargs))

    return StageCache
