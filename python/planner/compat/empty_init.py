"""Models without memory: parameters land on the meta device as they are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["init_empty_weights"]


@contextmanager
def init_empty_weights(include_buffers: bool = False) -> Iterator[None]:
    """While open, new modules put their parameters on the meta device, where they have a size but take no memory.

    Args:
        include_buffers: buffers, too, and every tensor made on the way.

    Guarantee: what was there before the block is there after it, also when the block raises. Reads no environment variable;
        accelerate takes its default from ACCELERATE_INIT_INCLUDE_BUFFERS.

    Source: accelerate 1.15, big_modeling.py.

    Example:
        >>> import torch
        >>> with init_empty_weights():
        ...     layer = torch.nn.Linear(100, 100)
        >>> layer.weight.device.type
        'meta'
    """
    import torch

    meta = torch.device("meta")
    if include_buffers:
        with meta:
            yield
        return
    register = torch.nn.Module.register_parameter

    def register_empty(module: torch.nn.Module, name: str, param: Any) -> None:
        register(module, name, param)
        # What is on meta already stays the same object, so that ties survive.
        if param is not None and param.device != meta:
            module._parameters[name] = _emptied(param, meta)

    torch.nn.Module.register_parameter = register_empty  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def _emptied(param: Any, meta: Any) -> Any:
    """A parameter of the same class and attributes on the meta device."""
    import torch

    marks = dict(param.__dict__)
    # Attributes of a subclass are its constructor's arguments, but for transformers' mark.
    is_plain = type(param) is torch.nn.Parameter
    arguments = (
        {} if is_plain else {key: value for key, value in marks.items() if key != "_is_hf_initialized"}
    )
    empty = type(param)(param.to(meta), **{**arguments, "requires_grad": param.requires_grad})
    for key in marks.keys() - arguments.keys():
        setattr(empty, key, marks[key])
    return empty
