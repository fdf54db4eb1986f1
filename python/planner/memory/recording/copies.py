"""Copies of modules, sooner than `copy.deepcopy` makes them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, Final

import torch
from torch import nn

__all__ = ["copied"]

_PLAIN: Final = frozenset({bool, int, float, str, bytes, type(None)})
_OWN_WAYS: Final = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs_ex__")


def copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What ``copy.deepcopy`` makes of a module; of a tensor that a forward has left there, its values without their graph.

    Args:
        module: only looked at.
        memo: as of ``copy.deepcopy``; what is in it already is not copied.

    Cost: most of what a module has is empty, and most of what is inside is modules: neither asks for the general way.
    """
    known: nn.Module | None = memo.get(id(module))
    if known is not None:
        return known
    if any(getattr(type(module), way, None) is not getattr(nn.Module, way, None) for way in _OWN_WAYS):
        whole: nn.Module = copy.deepcopy(module, memo)
        return whole
    made: nn.Module = object.__new__(type(module))
    memo[id(module)] = made
    for key, value in vars(module).items():
        kind = type(value)
        if key == "_compiled_call_impl":
            continue  # which torch leaves behind, too
        if kind in _PLAIN:
            new: Any = value
        elif key in ("_modules", "_parameters", "_buffers") and kind is dict:
            new = {name: _each(each, memo) for name, each in value.items()}
            memo[id(value)] = new
        elif kind in (dict, set, list, OrderedDict) and not value:
            new = memo[id(value)] = kind()
        elif isinstance(value, torch.Tensor) and not value.is_leaf:
            new = memo[id(value)] = value.detach().clone()  # kept from a forward, with its graph
        else:
            new = copy.deepcopy(value, memo)
        made.__dict__[key] = new
    return made


def _each(value: Any, memo: dict[int, Any]) -> Any:
    return copied(value, memo) if isinstance(value, nn.Module) else copy.deepcopy(value, memo)
