"""How many new tokens a module is called with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["new_tokens"]


def new_tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Elements of the first tensor among arguments, divided by its last dimension; 0 without one."""
    found = _first_tensor((*args, *kwargs.values()))
    if found is None:
        return 0
    width = found.shape[-1] if found.dim() else 1
    return found.numel() // width if width else 0


def _first_tensor(values: Iterable[Any]) -> torch.Tensor | None:
    for value in values:
        if isinstance(value, torch.Tensor):
            return value
        inside = (
            value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
        )
        found = _first_tensor(inside)
        if found is not None:
            return found
    return None
