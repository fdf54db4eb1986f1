"""What the classes of configurations have by default of what caches are computed from: a column of the table of architectures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import transformers

import model_zoo
from planner.errors import PlannerError
from planner.memory.cache_layers import layer_layouts
from planner.memory.config_defaults import CacheDefaults, completed
from planner.memory.config_values import DECODERS

SAID = ("model_type", "layer_types", "layers_block_type", "block_types")


class Asked(dict[str, Any]):
    """A mapping that notes which of its keys are read."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__({key: Asked(v) if isinstance(v, dict) else v for key, v in values.items()})
        self.keys_read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.keys_read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:  # type: ignore[override]
        """The value, as dict has it."""
        self.keys_read.add(key)
        return super().get(key, default)


def values_of(config: Any) -> dict[str, Any]:
    """A configuration as a file would hold it, with everything that it has."""
    made: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return made


def decoder_path(config: Any) -> tuple[tuple[str, ...], Any]:
    """Where the decoder's configuration lies, and it."""
    path: tuple[str, ...] = ()
    while True:
        key = next((key for key in DECODERS if hasattr(getattr(config, key, None), "to_dict")), None)
        if key is None:
            return path, config
        path, config = (*path, key), getattr(config, key)


def within(name: str, path: tuple[str, ...], said: dict[str, Any]) -> Any:
    """The decoder's configuration, of which a file says so much, as the class of the whole completes it."""
    given: dict[str, Any] = said
    for key in reversed(path):
        given = {key: given}
    missing = model_zoo.MISSING.get(name, {})
    return decoder_path(getattr(transformers, name).config_class(**{**missing, **given}))[1]


def changed(config: Any, make: Callable[..., Any]) -> Iterator[Any]:
    """Configurations of the same class with other heads, widths and depths."""
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    values = config.to_dict()
    sizes = {name: values.get(name) for name in names}
    for change in (
        {"num_hidden_layers": lambda n: 2 * n + 1},
        {"num_hidden_layers": lambda n: n + 2},
        {"num_attention_heads": lambda n: 2 * n},
        {"hidden_size": lambda n: 2 * n},
    ):
        given = {name: rule(sizes[name]) for name, rule in change.items() if isinstance(sizes[name], int)}
        try:
            yield make(**given)
        except Exception:
            continue  # a configuration that the class refuses is nobody's


def _within(name: str, path: tuple[str, ...], model_type: str, **sizes: Any) -> Any:
    return within(name, path, {"model_type": model_type, **sizes})


def period(types: list[str]) -> list[str]:
    """The shortest beginning that the rest repeats; empty if nothing repeats."""
    for length in range(1, len(types) // 2 + 1):
        if all(kind == types[index % length] for index, kind in enumerate(types)):
            return types[:length]
    return []


def record(name: str) -> dict[str, Any] | None:
    """The column of one class; None where its cache is not known, or no default is enough."""
    cls = getattr(transformers, name)
    config = cls.config_class(**model_zoo.MISSING.get(name, {}))
    path, decoder = decoder_path(config)
    make: Callable[..., Any] = type(decoder)
    if path:
        make = partial(_within, name, path, decoder.model_type)
        decoder = make()
    values = Asked(values_of(decoder))
    try:
        layer_layouts({**values_of(config), **values} if not path else values)
        layer_layouts(values)
    except PlannerError:
        return None
    others = [values_of(other) for other in changed(decoder, make)]
    kept = {
        key: value
        for key in sorted(values.keys_read - set(SAID))
        if (value := dict.get(values, key)) is not None
        and not isinstance(value, dict)
        and all(other.get(key) == value for other in others)
    }
    if not cls._supports_sdpa:
        kept["has_fused_attention"] = False
    types = [other["layer_types"] for other in others if isinstance(other.get("layer_types"), list)]
    pattern = period(max(types, key=len)) if types else []
    made: dict[str, Any] = {
        "path": list(path),
        "model_type": decoder.model_type,
        "values": kept,
        "pattern": pattern,
        "needs_types": False,
    }
    wholes = [dict(values), *others]
    # Where windows alone tell the types, a pattern would hide what a file says of windows.
    for each in ({**made, "pattern": []}, made):
        if all(is_enough(each, whole) for whole in wholes):
            return each
    if not values.get("layer_types"):
        return None
    # What the class computes of other values has to be said.
    return {**made, "pattern": [], "needs_types": True}


def is_enough(made: dict[str, Any], whole: dict[str, Any]) -> bool:
    """Whether the defaults give back what a file of sizes alone leaves out."""
    left = {key: value for key, value in whole.items() if key in SIZES}
    filled = completed(left, (), CacheDefaults.from_record(made))
    try:
        return layer_layouts(filled) == layer_layouts(whole)
    except PlannerError:
        return False


SIZES = (
    *("model_type", "num_hidden_layers", "num_attention_heads", "hidden_size", "n_layer", "n_head", "n_embd"),
    *(
        "num_decoder_layers",
        "d_model",
        "num_layers",
        "num_heads",
        "decoder_layers",
        "decoder_attention_heads",
        "n_layers",
        "n_heads",
        "dim",
    ),
)
