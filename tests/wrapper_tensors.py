"""Tensors around other tensors, as quantised weights are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

__all__ = ["Flat", "Int8", "Packed", "Scaled", "Slotted", "State", "Telling"]


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


class State:
    """What a 4-bit weight of bitsandbytes carries: statistics, which may be quantised themselves, moved in place."""

    def __init__(self, absmax: torch.Tensor, state2: State | None = None) -> None:
        self.absmax = absmax
        self.code = torch.linspace(-1, 1, 16)
        self.state2 = state2

    def to(self, device: Any) -> None:
        self.absmax, self.code = self.absmax.to(device), self.code.to(device)
        if self.state2 is not None:
            self.state2.to(device)


class Packed(nn.Parameter):
    """A 4-bit weight as bitsandbytes has it: a `to` of its own, which changes what it carries in place."""

    def __new__(
        cls, data: torch.Tensor, requires_grad: bool = False, state: Any = None, module: Any = None
    ) -> Any:
        made = torch.Tensor._make_subclass(cls, data, requires_grad)
        made.state, made.module = state, module
        return made

    def to(self, *args: Any, **kwargs: Any) -> Any:
        moved = super().to(*args, **kwargs)
        self.state.to(moved.device)
        return Packed(moved, self.requires_grad, self.state)


class Int8(nn.Parameter):
    """An 8-bit weight as bitsandbytes has it: itself under another name, and scales, which its `to` leaves behind."""

    def __new__(cls, data: torch.Tensor, requires_grad: bool = False, CB: Any = None, SCB: Any = None) -> Any:
        made = torch.Tensor._make_subclass(cls, data, requires_grad)
        made.CB, made.SCB = CB, SCB
        return made

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return Int8(super().to(*args, **kwargs), self.requires_grad, self.CB, self.SCB)


class Scaled(nn.Parameter):
    """One without a `to` of its own: scales in containers, in slots, and under two names."""

    def __new__(cls, data: torch.Tensor, requires_grad: bool = False, **_: Any) -> Any:
        return torch.Tensor._make_subclass(cls, data, requires_grad)


class Slotted:
    """Plain, without a dict."""

    __slots__ = ("__scale", "owner")

    def __init__(self, scale: torch.Tensor, owner: Any) -> None:
        self.__scale, self.owner = scale, owner

    def scale(self) -> torch.Tensor:
        return self.__scale
