"""What instances of a class are to a border."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass

import torch
from torch import nn

__all__ = ["INERT", "KINDS", "MAPPING", "MOVER", "RECORD", "SEQUENCE", "TENSOR", "kind_of"]

INERT, TENSOR, SEQUENCE, MAPPING, RECORD, MOVER = range(6)

# By class; filled as classes are met.
KINDS: dict[type, int] = {
    torch.Tensor: TENSOR,
    nn.Parameter: TENSOR,
    type(None): INERT,
    bool: INERT,
    int: INERT,
    float: INERT,
    str: INERT,
    tuple: SEQUENCE,
    list: SEQUENCE,
    dict: MAPPING,
}


def kind_of(cls: type) -> int:
    """What instances of a class are to a border. Cost: one look-up after the first time."""
    kind = KINDS.get(cls)
    if kind is None:
        kind = KINDS[cls] = _classify(cls)
    return kind


# The compiler cannot read the names of built-in classes, and a model may be compiled before its first forward.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _classify(cls: type) -> int:
    if issubclass(cls, torch.Tensor):
        return TENSOR
    # A cache belongs to the layers that fill it; each puts its part where it runs.
    if issubclass(cls, nn.Module | type) or any(base.__name__.endswith("Cache") for base in cls.__mro__):
        return INERT
    if issubclass(cls, Mapping):
        return MAPPING
    has_to = callable(getattr(cls, "to", None))
    if issubclass(cls, tuple | list) and not (has_to and issubclass(cls, tuple)):
        return SEQUENCE
    if has_to:
        return MOVER
    return RECORD if is_dataclass(cls) else INERT
