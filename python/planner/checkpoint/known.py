"""Which architecture a checkpoint is of: by the table, or by transformers where the table has none."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.checkpoint.architecture import Architecture, class_of_type, known_architecture
from planner.checkpoint.describe import architecture_record, meta_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An architecture, or none, and what to say of it."""

    architecture: Architecture | None
    notes: tuple[str, ...]


def has_transformers() -> bool:
    """Whether transformers and torch can be imported; neither is."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def class_name(config: Mapping[str, Any]) -> str | None:
    """The model class that a ``config.json`` names, or that its type is loaded as."""
    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    model_type = config.get("model_type")
    return class_of_type(model_type) if isinstance(model_type, str) else None


def find_architecture(config: Mapping[str, Any], config_path: str) -> Known:
    """The architecture that a configuration means.

    Guarantee: torch is imported only for what is not in the table, and no code that comes with a checkpoint is run.
    """
    name = class_name(config)
    if name is None and isinstance(config.get("_class_name"), str):
        return Known(
            architecture=None, notes=()
        )  # of diffusers, which has the files' names; its blocks are what repeats
    if name is None:
        return _as_stored(
            "no config.json says what model this is" if not config else "config.json names no model"
        )
    known = known_architecture(name)
    other = _other_parts(known, config) if known else ()
    if known is not None and not other:
        return Known(architecture=known, notes=())
    if has_transformers():
        try:
            record = architecture_record(meta_model(name, config, config_path))
        except ValueError as error:
            return _as_stored(str(error)) if known is None else Known(architecture=known, notes=(str(error),))
        return Known(architecture=Architecture.from_record(record), notes=())
    if known is None:
        return _as_stored(f"{name} is not in the table, and transformers is not installed")
    return Known(architecture=known, notes=(f"{name} is described with other parts: {', '.join(other)}",))


def _as_stored(why: str) -> Known:
    return Known(
        architecture=None,
        notes=(f"names and blocks are those of the files, not of a live model, which may differ: {why}",),
    )


def _other_parts(known: Architecture, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Parts of another type than the table's line was made with."""
    other = []
    for key, model_type in known.parts.items():
        said = config.get(key)
        own = said.get("model_type") if isinstance(said, dict) else None
        if isinstance(own, str) and own != model_type:
            other.append(f"{key} of type {model_type} instead of {own}")
    return tuple(other)
