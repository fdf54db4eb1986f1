"""Results of operators on the meta device, remembered: what the same operator makes of the same shapes."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["KnownResults"]

_Shape = tuple[torch.Size, tuple[int, ...], torch.dtype]


class KnownResults:
    """Makes an operator's results without asking its kernel again, which takes some ten times as long.

    Only of operators that neither write nor return what they are given. Layers of a model are alike, so most are.
    """

    def __init__(self) -> None:
        self._results: dict[Any, _Shape | tuple[_Shape, ...]] = {}
        self._is_pure: dict[Any, bool] = {}

    def of(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator returns."""
        is_pure = self._is_pure.get(func)
        if is_pure is None:
            is_pure = self._is_pure[func] = _is_pure(func)
        if not is_pure:
            return func(*args, **kwargs)
        try:
            key = (func, _key(args), _key(tuple(kwargs.items())) if kwargs else ())
            known = self._results.get(key)
        except TypeError:  # something that cannot be hashed or has no shape
            return func(*args, **kwargs)
        if known is not None:
            if isinstance(known[0], tuple) and not isinstance(known[0], torch.Size):
                return tuple(_made(*each) for each in known)
            return _made(*known)
        out = func(*args, **kwargs)
        made = (out,) if isinstance(out, torch.Tensor) else out
        if isinstance(made, tuple) and made and all(_is_meta(each) for each in made):
            given = {each.untyped_storage()._cdata for each in _tensors((args, kwargs))}
            # Some return what they are given and do not say so.
            if not any(each.untyped_storage()._cdata in given for each in made):
                shapes = tuple(_shape(each) for each in made)
                self._results[key] = shapes[0] if made[0] is out else shapes
        return out


def _is_pure(func: Any) -> bool:
    schema = func._schema
    return func.namespace == "aten" and not any(
        each.alias_info is not None for each in (*schema.arguments, *schema.returns)
    )


def _shape(tensor: torch.Tensor) -> _Shape:
    return tensor.shape, tensor.stride(), tensor.dtype


def _made(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [each for item in value for each in _tensors(item)] if isinstance(value, tuple | list) else []


def _key(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if not value.is_meta:
            raise TypeError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple([_key(item) for item in value])
    # Numbers that are equal need not be alike: 1, 1.0 and True.
    return (type(value), value)
