"""Parameters that land on a device as they are made: on the meta device, where they take no memory, or on any other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["init_empty_weights", "init_on_device"]


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
    with init_on_device("meta", include_buffers=include_buffers):
        yield


@contextmanager
def init_on_device(device: Any, include_buffers: bool = False) -> Iterator[None]:
    """While open, new modules put their parameters on a device.

    Args:
        device: where to.
        include_buffers: buffers, too, and every tensor made on the way.

    Raises:
        InvalidDevicesError: no device of torch, or none of this machine. Fields: ``device``.

    Guarantee: as :func:`init_empty_weights`.

    Source: accelerate 1.15, big_modeling.py.

    Example:
        >>> import torch
        >>> with init_on_device("cpu"):
        ...     layer = torch.nn.Linear(2, 2)
        >>> layer.weight.device.type
        'cpu'
    """
    import torch

    from planner.dispatching.tensors.slots import usable_device

    target = usable_device(device)
    if include_buffers:
        with target:
            yield
        return
    register = torch.nn.Module.register_parameter

    def register_there(module: torch.nn.Module, name: str, param: Any) -> None:
        register(module, name, param)
        # What is there already stays the same object, so that ties survive.
        if param is not None and param.device != target:
            module._parameters[name] = _there(param, target)

    torch.nn.Module.register_parameter = register_there  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def _there(param: Any, device: Any) -> Any:
    """A parameter of the same class and attributes on a device."""
    import torch

    marks = dict(param.__dict__)
    # Attributes of a subclass are its constructor's arguments, but for transformers' mark.
    is_plain = type(param) is torch.nn.Parameter
    arguments = (
        {} if is_plain else {key: value for key, value in marks.items() if key != "_is_hf_initialized"}
    )
    made = type(param)(param.to(device), **{**arguments, "requires_grad": param.requires_grad})
    for key in marks.keys() - arguments.keys():
        setattr(made, key, marks[key])
    return made
