"""Which type each layer of a decoder has, as caches tell them apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from planner.memory.config_values import Config, depth, model_type

_WITHOUT_CACHE: Final = ("moe", "mlp", "none", "dummy")
_SAME: Final = MappingProxyType(
    {"attention": "full_attention", "mamba": "linear_attention", "recurrent": "linear_attention"}
)


def layer_types(config: Config) -> list[str]:
    """The type of each layer, as the configuration says it or as the class makes it of other values.

    Source: ``get_layer_types_and_kwargs`` in cache_utils.py of transformers 5.23.
    """
    count = depth(config)
    said = config.get("layer_types") or config.get("layers_block_type") or config.get("block_types")
    if isinstance(said, list | tuple) and len(said) >= count:
        types = [_SAME.get(each, str(each)) for each in said[:count]]
    else:
        rule = _BY_TYPE.get(model_type(config), _by_windows)
        types = [rule(config, index) for index in range(count)]
    reused = _reused(config, count)
    return [
        "none" if reuse or kind in _WITHOUT_CACHE else kind for kind, reuse in zip(types, reused, strict=True)
    ]


def _reused(config: Config, count: int) -> list[bool]:
    """Whether each layer reads the keys of an earlier one and keeps none."""
    modes = config.get("kv_sharing_modes")
    if isinstance(modes, list | tuple) and len(modes) == count:
        return [mode == "reuse" for mode in modes]
    shared = config.get("num_kv_shared_layers") or 0
    return [index >= count - shared for index in range(count)]


def _by_windows(config: Config, index: int) -> str:
    is_wanted = config.get("use_sliding_window") is not False
    first = config.get("max_window_layers") if "use_sliding_window" in config else None
    if config.get("sliding_window") is not None and is_wanted and index >= (first or 0):
        return "sliding_attention"
    return "chunked_attention" if config.get("attention_chunk_size") is not None else "full_attention"


def _jamba(config: Config, index: int) -> str:
    is_attention = index % config["attn_layer_period"] == config["attn_layer_offset"]
    return "full_attention" if is_attention else "linear_attention"


def _bamba(config: Config, index: int) -> str:
    return "full_attention" if index in (config.get("attn_layer_indices") or ()) else "linear_attention"


def _hybrid(config: Config, index: int) -> str:
    return "hybrid"


def _linear(config: Config, index: int) -> str:
    return "linear_attention"


_ONLY_STATES: Final = ("mamba", "falcon_mamba", "mamba2")
_BY_TYPE: Final[Mapping[str, Callable[[Config, int], str]]] = MappingProxyType(
    {"jamba": _jamba, "bamba": _bamba, "falcon_h1": _hybrid, **dict.fromkeys(_ONLY_STATES, _linear)}
)
