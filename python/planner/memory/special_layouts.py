"""Caches of model types that have a layout of their own."""

from __future__ import annotations

from planner.memory.cache_parts import CacheLayout
from planner.memory.config_values import Config


def special_layouts(config: Config) -> tuple[CacheLayout, ...] | None:
    """The layers of such a model; None for every other."""
    return None
