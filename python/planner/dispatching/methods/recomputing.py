"""Layers of transformers that are computed again for backward: they call their class's forward, past everything around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from planner.dispatching.offload.refcount import OffloadedModule, Use
from planner.dispatching.tensors.journal import Journal

__all__ = ["end_materializing_again", "materialize_again"]

# Where transformers keeps torch's function for that, in each layer.
_PLACE = "_gradient_checkpointing_func"


class _Recomputing:
    """Stands in the place of the function that computes a layer now, and again for backward.

    Args:
        usual: that function.
        offloaded_modules: what the layer needs each time.
        device: where it runs.
    """

    __slots__ = ("device", "offloaded_modules", "usual")

    def __init__(
        self, usual: Callable[..., Any], offloaded_modules: tuple[OffloadedModule, ...], device: torch.device
    ) -> None:
        self.usual = usual
        self.offloaded_modules = offloaded_modules
        self.device = device

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.usual(_Fetched(self, function), *args, **kwargs)


class _Fetched:
    """A layer's forward with its weights brought in."""

    __slots__ = ("function", "recomputing")

    def __init__(self, recomputing: _Recomputing, function: Callable[..., Any]) -> None:
        self.recomputing = recomputing
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        use = Use(self.recomputing.offloaded_modules)
        try:
            try:
                use.begin(self.recomputing.device)
                return self.function(*args, **kwargs)
            finally:
                use.end()
        except BaseException:
            use.end()  # again, in case that an interrupt came just before it
            raise


def materialize_again(
    module: nn.Module, offloaded_modules: tuple[OffloadedModule, ...], device: torch.device
) -> None:
    """Lets a layer that is about to be checkpointed find its weights whenever it is computed again."""
    usual = module.__dict__.get(_PLACE)
    if usual is not None and not isinstance(usual, _Recomputing):
        module.__dict__[_PLACE] = _Recomputing(usual, offloaded_modules, device)


def end_materializing_again(journal: Journal, module: nn.Module) -> None:
    """Undoes :func:`materialize_again`."""
    found = module.__dict__.get(_PLACE)
    if isinstance(found, _Recomputing):
        journal.set(module.__dict__, _PLACE, found.usual)
