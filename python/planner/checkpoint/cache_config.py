"""Configurations as caches are computed from them: with what a file leaves out filled in from the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from planner.checkpoint.architecture import class_of_type, known_architecture
from planner.checkpoint.known import class_name
from planner.memory.config_defaults import CacheDefaults, completed, said_decoder

# Whose files say of the decoder what they say of the whole; transformers makes a text_config of that.
_FLAT: Final = ("fuyu", "hunyuan_vl", "paddleocr_vl", "qwen2_vl", "qwen2_5_vl")


def completed_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration with what its class has by default.

    Args:
        config: what ``config.json`` holds; it is not changed.

    Returns:
        The same with more values. Of a class that the table does not know, the given one.

    Cost: the table is read once or twice, and one line is parsed each time.
    """
    own = _defaults(class_name(config))
    path, decoder = said_decoder(config)
    if not path and own is not None and config.get("model_type") in _FLAT:
        inside = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
        return completed({**config, own.path[0]: inside}, own.path, own)
    kind = decoder.get("model_type") if path else None
    if own is not None and (kind is None or kind == own.model_type):
        return completed(config, path or own.path, own)
    other = _defaults(class_of_type(kind)) if isinstance(kind, str) else None
    return config if other is None or other.path else completed(config, path, other)


def _defaults(name: str | None) -> CacheDefaults | None:
    known = known_architecture(name) if name else None
    return known.cache_defaults if known else None
