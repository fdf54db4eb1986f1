"""What a ``config.json`` leaves out of what caches are computed from, because the class has it by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from planner.errors import UnknownMemoryError
from planner.memory.config_values import DECODERS, Config, depth

# A pattern of layers as one number: so many layers until the one with full attention.
_INTERVALS: Final = ("sliding_window_pattern", "_sliding_window_pattern", "full_attention_interval")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheDefaults:
    """What the class of a decoder has by default.

    Args:
        path: where a model's configuration says what its decoder is; empty where it is the model.
        model_type: of the decoder.
        values: by key, those that depend on no other.
        pattern: types of layers, from the first on and then over again; empty where the class has no such rule.
        needs_types: whether a configuration has to say the types of its layers, as the class has a rule of its own for them.
    """

    path: tuple[str, ...]
    model_type: str
    values: Mapping[str, Any]
    pattern: tuple[str, ...]
    needs_types: bool = False

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> CacheDefaults:
        """The defaults from their column in the table."""
        return cls(
            path=tuple(record["path"]),
            model_type=record["model_type"],
            values=record["values"],
            pattern=tuple(record["pattern"]),
            needs_types=bool(record["needs_types"]),
        )


def said_decoder(config: Config) -> tuple[tuple[str, ...], Config]:
    """Where a configuration says what its decoder is, and what it says; the whole of it where it has no such part."""
    path: tuple[str, ...] = ()
    while True:
        key = next((key for key in DECODERS if isinstance(config.get(key), Mapping) and config[key]), None)
        if key is None:
            return path, config
        path, config = (*path, key), config[key]


def completed(config: Config, path: tuple[str, ...], defaults: CacheDefaults) -> Config:
    """A configuration with what it leaves out filled in; the given one is not changed.

    Args:
        config: what ``config.json`` holds.
        path: where in it the decoder is.
        defaults: what that decoder has by default.

    Raises:
        UnknownMemoryError: it leaves out the types of layers, for which the class has a rule that no pattern tells.

    Example:
        >>> pattern = CacheDefaults(path=(), model_type="x", values={"head_dim": 128}, pattern=("a", "b"))
        >>> completed({"num_hidden_layers": 3}, (), pattern)
        {'num_hidden_layers': 3, 'head_dim': 128, 'model_type': 'x', 'layer_types': ['a', 'b', 'a']}
    """
    if path:
        said = config.get(path[0])
        inner = said if isinstance(said, Mapping) else {}
        return {**config, path[0]: completed(inner, path[1:], defaults)}
    filled = dict(config)
    for key, value in defaults.values.items():
        filled.setdefault(key, value)
    filled.setdefault("model_type", defaults.model_type)
    if not any(filled.get(key) for key in ("layer_types", "layers_block_type", "block_types")):
        if defaults.needs_types:
            raise UnknownMemoryError(
                f"the configuration of a model of type {defaults.model_type} leaves out layer_types, and its class has a rule of "
                "its own for them: say layer_types, or have transformers write the file anew",
                model_type=defaults.model_type,
                unknown="layer_types",
            )
        if defaults.pattern:
            filled["layer_types"] = _types(filled, defaults.pattern)
    return filled


def _types(config: Config, pattern: tuple[str, ...]) -> list[str]:
    interval = next((config[key] for key in _INTERVALS if type(config.get(key)) is int), None)
    if interval:
        other = next((each for each in pattern if each != "full_attention"), "full_attention")
        return [other if (index + 1) % interval else "full_attention" for index in range(depth(config))]
    return [pattern[index % len(pattern)] for index in range(depth(config))]
