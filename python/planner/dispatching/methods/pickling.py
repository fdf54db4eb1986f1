"""Pickling modules with placeholders in them: alone, a placeholder refuses to be pickled."""

from __future__ import annotations

from typing import Any

from torch import nn

from planner.dispatching.offload.refcount import OffloadedModule
from planner.dispatching.tensors.placeholder import PlaceholderTensor

__all__ = ["Pickling", "end_pickling", "let_pickle"]

_PLACE = "__reduce_ex__"


class Pickling:
    """Stands in the place of a module's ``__reduce_ex__``.

    Args:
        module: the module.
        offloaded_module: of its offloaded tensors; a copy that is made while they are in use has placeholders as well.
    """

    __slots__ = ("module", "offloaded_module")

    def __init__(self, module: nn.Module, offloaded_module: OffloadedModule) -> None:
        self.module = module
        self.offloaded_module = offloaded_module

    def __call__(self, protocol: Any) -> Any:
        reduced: Any = type(self.module).__reduce_ex__(self.module, protocol)
        if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], dict):
            return reduced
        state = {
            key: self._in_model(value) if key in ("_parameters", "_buffers") else value
            for key, value in reduced[2].items()
        }
        return (*reduced[:2], state, *reduced[3:])

    def _in_model(self, table: dict[str, Any]) -> dict[str, Any]:
        found = {name: self.offloaded_module.outside(tensor) for name, tensor in table.items()}
        return {
            name: tensor.in_model() if isinstance(tensor, PlaceholderTensor) else tensor
            for name, tensor in found.items()
        }


def let_pickle(offloaded_module: OffloadedModule) -> None:
    """Lets a module with offloaded tensors be pickled and copied with its placeholders."""
    module = offloaded_module.store.slots[0].module
    module.__dict__[_PLACE] = Pickling(module, offloaded_module)


def end_pickling(module: nn.Module) -> None:
    """Undoes :func:`let_pickle`."""
    if isinstance(module.__dict__.get(_PLACE), Pickling):
        del module.__dict__[_PLACE]
