"""A tensor that many blocks get crosses to a device once for each forward of the whole model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["carry", "carry_alone", "one_forward"]


class _Crossing:
    """Copies of one tensor, valid while neither it nor they have been written to."""

    __slots__ = ("copies", "ref", "version")

    def __init__(self, ref: weakref.ref[torch.Tensor], version: int) -> None:
        self.ref = ref
        self.version = version
        self.copies: dict[torch.device, tuple[torch.Tensor, int]] = {}


class _Forwards(threading.local):
    """Crossings of the forward that this thread is in, if it is in one."""

    crossings: dict[int, _Crossing] | None = None


_forwards = _Forwards()


@contextmanager
def one_forward() -> Iterator[None]:
    """Within, tensors cross once. A forward inside another one shares its crossings."""
    if _forwards.crossings is not None:
        yield
        return
    crossings: dict[int, _Crossing] = {}
    _forwards.crossings = crossings
    try:
        yield
    finally:
        _forwards.crossings = None
        # The tensors' own references lead back here, and copies shall not wait for the garbage collector.
        crossings.clear()


def carry_alone(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device, whoever else may want it there."""
    return tensor.to(device)


def carry(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device: the copy made before in this forward, if there is one."""
    crossings = _forwards.crossings
    # What was made under inference_mode does not tell whether it has been written to.
    if crossings is None or tensor.is_inference():
        return tensor.to(device)
    key = id(tensor)
    crossing = crossings.get(key)
    if crossing is None or crossing.ref() is not tensor or crossing.version != tensor._version:
        # The copies go with the tensor: a hidden state is not kept until the end of the forward.
        ref = weakref.ref(tensor, lambda _: crossings.pop(key, None))
        crossing = crossings[key] = _Crossing(ref, tensor._version)
    found = crossing.copies.get(device)
    if found is not None and found[0]._version == found[1] and found[0].requires_grad == _needs_graph(tensor):
        return found[0]
    made = tensor.to(device)
    if made.is_inference():
        return made
    crossing.copies[device] = (made, made._version)
    return made


def _needs_graph(tensor: torch.Tensor) -> bool:
    """Whether a copy made now would be part of a graph; one made under ``no_grad`` must not serve with gradients."""
    return tensor.requires_grad and torch.is_grad_enabled()
