"""Offloaded weights at hand for code that works on them outside of a forward: where they run, and with their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final

import torch
from torch import nn

from planner.compat.offloaded import align_module_device, has_offloaded_params
from planner.dispatching.offload.refcount import OffloadedModule, Use
from planner.dispatching.offload.store import OffloadStore
from planner.dispatching.tensors.placeholder import PlaceholderTensor
from planner.dispatching.tensors.placeholder_device import PlaceholderDevice
from planner.dispatching.tensors.slots import Slot, modules_of, own_slots

__all__ = ["WeightsAtHand", "has_placeholders"]

_CPU: Final = torch.device("cpu")


def has_placeholders(model: nn.Module) -> bool:
    """Whether anything of a model is offloaded by ours."""
    return next(_placeholders(model), None) is not None


def _placeholders(model: nn.Module) -> Iterator[tuple[Slot, PlaceholderTensor]]:
    for _, module in modules_of(model):
        for slot in own_slots(module):
            found = slot.read()
            if isinstance(found, PlaceholderTensor) and found.whereabouts is not None:
                yield slot, found


class WeightsAtHand:
    """While open, offloaded weights say where their module runs, and are in their module from when they are first read.

    Args:
        model: the model, dispatched, or with placeholders of a dispatch that was taken off.

    Guarantee: nothing is read that nobody asks for. What is written to a weight that was read is kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._present = ExitStack()
        self._opened = ExitStack()
        self._modules: set[int] = set()

    def __enter__(self) -> WeightsAtHand:
        """From now on."""
        with ExitStack() as opened:
            for slot, placeholder in _placeholders(self._model):
                where = placeholder.whereabouts
                if isinstance(placeholder.fetch, _ReadInPlace) or where is None:
                    continue  # tied, and known by another name
                opened.callback(_restore, placeholder, where, placeholder.fetch)
                placeholder.whereabouts = replace(where, is_open=True)
                placeholder.fetch = _ReadInPlace(self, slot, where, placeholder.fetch)
                placeholder.is_at_hand = True
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Everything is where it was."""
        try:
            self.let_go()
        finally:
            self._opened.close()

    def let_go(self) -> None:
        """Puts back what was read so far, with what was written to it."""
        self._modules.clear()
        self._present.pop_all().close()

    def bring_in(self, slot: Slot, where: PlaceholderDevice) -> None:
        """Puts the weights of a module into it, if they are not there."""
        if id(slot.module) not in self._modules:
            self._modules.add(id(slot.module))
            self._present.enter_context(_in_place(slot.module, where))


class _ReadInPlace:
    """What a placeholder gives for its values: those that are put in its place then."""

    def __init__(
        self,
        at_hand: WeightsAtHand,
        slot: Slot,
        where: PlaceholderDevice,
        before: Callable[[], torch.Tensor] | None,
    ) -> None:
        self._at_hand = at_hand
        self._slot = slot
        self._where = where
        self._before = before

    def __call__(self) -> torch.Tensor:
        self._at_hand.bring_in(self._slot, self._where)
        found: torch.Tensor = self._slot.read()
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the module is read as the module is when this is over.
        return _same, (self._before,)


def _same(found: Callable[[], torch.Tensor] | None) -> Callable[[], torch.Tensor] | None:
    return found


def _restore(
    placeholder: PlaceholderTensor, where: PlaceholderDevice, fetch: Callable[[], torch.Tensor] | None
) -> None:
    placeholder.whereabouts, placeholder.fetch, placeholder.is_at_hand = where, fetch, False


def _in_place(module: nn.Module, where: PlaceholderDevice) -> AbstractContextManager[None]:
    return align_module_device(module) if has_offloaded_params(module) else _without_hook(where)


@contextmanager
def _without_hook(where: PlaceholderDevice) -> Iterator[None]:
    """The weights of a module whose hook was taken off."""
    assert isinstance(where.store, OffloadStore)
    offloaded_module = OffloadedModule(where.store)
    use = Use([offloaded_module])
    try:
        use.begin(where.store.execution_device or _CPU)
        offloaded_module.compare_all()
        yield
    finally:
        use.end()
