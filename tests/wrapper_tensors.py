"""Tensors around other tensors, as quantised weights are."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map_only

__all__ = ["Flat", "Telling"]


class Flat(torch.Tensor):
    """A wrapper around another tensor, as quantised weights are."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        unwrapped = tree_map_only(Flat, lambda tensor: tensor.inner, (args, kwargs or {}))
        result = func(*unwrapped[0], **unwrapped[1])
        is_copy = func in (torch.ops.aten._to_copy.default, torch.ops.aten.detach.default)
        return cls(result) if is_copy else result


class Telling(Flat):
    """One that says what it wraps."""

    def __tensor_flatten__(self) -> Any:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, context: Any, size: Any, stride: Any) -> Any:
        return Telling(inner["inner"])
