"""A tensor that many blocks get crosses to a device once for each forward of the whole model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from planner.dispatching.tensors.fakes import address_of, is_fake
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.dispatching.transfer.argument_copies import ArgumentCopies
from planner.dispatching.transfer.move import Carry
from planner.dispatching.transfer.traced import TracedArgumentCopies

__all__ = ["NoValuesError", "carry_alone", "carry_once", "lend", "one_forward"]


class NoValuesError(Exception):
    """A tensor on the meta device was to go where it would need values."""


class _Crossing:
    """Copies of one tensor, valid while neither it nor they have been written to."""

    __slots__ = ("copies", "ref", "state")

    def __init__(self, ref: weakref.ref[torch.Tensor], state: tuple[int, int, torch.Size]) -> None:
        self.ref = ref
        self.state = state
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
    """The tensor on a device, in a copy that is not shared."""
    if tensor.is_meta and device.type != "meta" and not is_offloaded(tensor):
        raise NoValuesError(
            f"a tensor of shape {tuple(tensor.shape)} shall go to {device}, but it is on the meta device and has no values; if "
            "it was made on the device of a weight, that weight is offloaded: place that on an accelerator, or make the "
            "tensor on an input's device"
        )
    return tensor.to(device)


def carry_once(argument_copies: ArgumentCopies | TracedArgumentCopies) -> Carry:
    """Carries what is returned: in copies that no other call gets, but one of a tensor that is there in two places.

    A model's output has each tensor as an item and as an attribute.
    """
    if isinstance(argument_copies, TracedArgumentCopies):
        return carry_alone  # which looks by itself

    def carried(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        made: torch.Tensor | None = argument_copies.find(tensor)
        if made is None:
            made = carry_alone(tensor, device)
            argument_copies.lend(tensor, made)
        return made

    return carried


def lend(argument_copies: ArgumentCopies | TracedArgumentCopies) -> Carry:
    """Carries tensors and writes down what was lent."""
    if isinstance(argument_copies, TracedArgumentCopies):
        return _carry  # which writes that down itself

    def lent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        made = argument_copies.find(tensor)
        if made is not None:
            known: torch.Tensor = made
            return known
        if torch.is_inference_mode_enabled():
            # A copy that counts what is written to it, also inside of the mode.
            with torch.inference_mode(False), torch.no_grad():
                made = _carry(tensor, device)
        else:
            made = _carry(tensor, device)
        if made is not tensor and tensor.__dict__ and not is_fake(tensor):
            # Marks that a module may look for.
            made.__dict__.update(tensor.__dict__)
        argument_copies.watch_tensor(tensor, made)
        return made

    return lent


def _carry(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device: the copy made before in this forward, if there is one."""
    crossings = _forwards.crossings
    # What was made under inference_mode does not tell whether it has been written to.
    if crossings is None or tensor.is_inference():
        return carry_alone(tensor, device)
    key = id(tensor)
    crossing = crossings.get(key)
    # The address and the shape, because `.data = …` counts no write.
    state = (tensor._version, address_of(tensor), tensor.shape)
    if crossing is None or crossing.ref() is not tensor or crossing.state != state:
        # The copies go with the tensor: a hidden state is not kept until the end of the forward.
        ref = weakref.ref(tensor, lambda _: crossings.pop(key, None))
        crossing = crossings[key] = _Crossing(ref, state)
    found = crossing.copies.get(device)
    if found is not None and found[0]._version == found[1] and found[0].requires_grad == _needs_graph(tensor):
        return found[0]
    made = carry_alone(tensor, device)
    if made.is_inference():
        return made
    crossing.copies[device] = (made, made._version)
    return made


def _needs_graph(tensor: torch.Tensor) -> bool:
    """Whether a copy made now would be part of a graph; one made under ``no_grad`` must not serve with gradients."""
    return tensor.requires_grad and torch.is_grad_enabled()
