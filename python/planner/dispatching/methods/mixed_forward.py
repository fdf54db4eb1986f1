"""Forwards of a model over several devices: where its own code may mix these, the mode is on, and where it cannot, off."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from planner.dispatching.methods.forward import (
    Border,
    Forward,
    OffloadedForward,
    OffloadedRootForward,
    RootForward,
    device_of,
    sent,
    untraced,
)
from planner.dispatching.mixed.operators import Glue, gluing, lifted, pop, push, size, top

__all__ = [
    "MixedForward",
    "MixedRootForward",
    "OffloadedMixedForward",
    "OffloadedMixedRootForward",
    "OffloadedReturningForward",
    "OffloadedUnmixedForward",
    "ReturningForward",
    "SizedForward",
    "SizedMemberForward",
    "UnmixedForward",
]

_CPU = torch.device("cpu")


class UnmixedForward(Border):
    """Around a module that runs on one device, inside of one whose own code may mix devices."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # As `lifted`, spelled out, because this runs for every block.
        count = size()
        if count and type(mode := top(count - 1)) is Glue:
            pop()
            try:
                return Border.__call__(self, *args, **kwargs)
            finally:
                push(mode)
        return Border.__call__(self, *args, **kwargs)


class OffloadedUnmixedForward(OffloadedForward):
    """The same where weights are brought in."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mode = lifted()
        if mode is None:
            return OffloadedForward.__call__(self, *args, **kwargs)
        try:
            return OffloadedForward.__call__(self, *args, **kwargs)
        finally:
            push(mode)


class ReturningForward(UnmixedForward):
    """The same around a part that the cpu runs, of a block on an accelerator: its result goes back to where its arguments were.

    The block's code goes on there, with what else it has there. Left on the cpu, each result would meet an operator that refuses it.
    """

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        device = device_of(args, kwargs)
        return returned(UnmixedForward.__call__(self, *args, **kwargs), device)


class OffloadedReturningForward(OffloadedUnmixedForward):
    """The same where weights are brought in, from the disk."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        device = device_of(args, kwargs)
        return returned(OffloadedUnmixedForward.__call__(self, *args, **kwargs), device)


class SizedForward(OffloadedUnmixedForward):
    """Around a part that the cpu runs in short steps, and that is brought to its device in longer ones."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mode = lifted()
        if mode is None:
            return self._run(args, kwargs)
        try:
            return self._run(args, kwargs)
        finally:
            push(mode)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            return untraced()(self, args, kwargs)
        return self.hook.around(self, args, kwargs)


class SizedMemberForward(OffloadedForward):
    """Around what is inside of such a part: it runs where the part does."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hook = self.hook
        if not hook.is_special and hook.held_on() == _CPU:
            return self.original(*args, **kwargs)
        return OffloadedForward.__call__(self, *args, **kwargs)


def returned(output: Any, device: torch.device | None) -> Any:
    """A result on a device; None leaves it where it is."""
    return output if device is None else sent(output, device, frozenset())


class MixedForward(Border):
    """Around a module with parts on several devices, whose own code may mix these."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.hook.around(self, args, kwargs)

    def original(self, *args: Any, **kwargs: Any) -> Any:
        return _glued(self, args, kwargs)


class OffloadedMixedForward(OffloadedForward):
    """The same where weights are brought in."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return untraced()(self, args, kwargs)
        return self.hook.around(self, args, kwargs)

    def original(self, *args: Any, **kwargs: Any) -> Any:
        return _glued(self, args, kwargs)


class MixedRootForward(RootForward):
    """Around a whole model with parts on several devices."""

    __slots__ = ()

    def original(self, *args: Any, **kwargs: Any) -> Any:
        return _glued(self, args, kwargs)


class OffloadedMixedRootForward(OffloadedRootForward):
    """The same where it has an offloaded weight of its own."""

    __slots__ = ()

    def original(self, *args: Any, **kwargs: Any) -> Any:
        return _glued(self, args, kwargs)


def _glued(forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a module computes that may mix devices."""
    membership, call = forward.membership, partial(Forward.original, forward, *args, **kwargs)
    return call() if membership is None else gluing(membership.log, call)
