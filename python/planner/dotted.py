"""Dotted names of modules and tensors: which key of a map speaks for a name."""

from __future__ import annotations

from collections.abc import Container

__all__ = ["nearest_key"]


def nearest_key(name: str, keys: Container[str]) -> str | None:
    """The name itself or the nearest name around it that is a key; "" is around everything.

    Example:
        >>> nearest_key("layers.1.mlp", {"layers.1": 0, "": 1}), nearest_key("layers.10", {"layers.1": 0})
        ('layers.1', None)
    """
    while name and name not in keys:
        name = name.rpartition(".")[0]
    return name if name in keys else None
