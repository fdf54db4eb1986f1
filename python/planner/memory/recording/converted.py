"""A model's structure with the element types that it will be loaded with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from planner.memory.recording.twin import twin_of

__all__ = ["converted"]


def converted(model: nn.Module, dtype: str | None, special_dtypes: Mapping[str, str]) -> nn.Module:
    """The model itself where it already is what it will be loaded as; else a copy without bytes that is.

    Args:
        model: only looked at.
        dtype: of all floating-point parameters and buffers, by torch's name; None for what each one is.
        special_dtypes: by tensor, against ``dtype``.

    Raises:
        RecordingError: it cannot be copied. Fields: ``block``, ``operator``.

    Cost: a copy of the structure, where anything differs.
    """
    if dtype is None and not special_dtypes:
        return model
    into = None if dtype is None else getattr(torch, dtype)
    special = {name: getattr(torch, said) for name, said in special_dtypes.items()}
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    wanted = {
        name: special.get(name, into)
        for name, tensor in named.items()
        if name in special or tensor.is_floating_point()
    }
    if all(kind is None or named[name].dtype == kind for name, kind in wanted.items()):
        return model
    twin = twin_of(model)
    if into is not None:
        twin = twin.to(into)
    for name, kind in special.items():
        if name in named:
            tensor = (
                twin.get_parameter(name) if name in dict(twin.named_parameters()) else twin.get_buffer(name)
            )
            tensor.data = tensor.data.to(kind)
    return twin
