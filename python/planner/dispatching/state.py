"""The state dict of a dispatched model: every tensor with its values, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from planner.dispatching.install.lookup import TensorLookup
from planner.dispatching.install.record import dispatched_models
from planner.dispatching.tensors.slots import Slot, refuse_uninitialised
from planner.errors import OffloadError
from planner.names import qualified

__all__ = ["StateDict", "state_dict"]


class StateDict(Mapping[str, torch.Tensor]):
    """Names to tensors; a tensor is brought to the CPU when it is asked for, and nothing of it is kept.

    Args:
        model: the model.

    Guarantee: the names of ``model.state_dict()``, in its order; tied names give equal tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        self._slots: dict[str, Slot] = {}
        self._resting = TensorLookup(model, dispatched_models(model))
        for prefix, module in model.named_modules(remove_duplicate=False):
            for table, is_buffer in ((module._parameters, False), (module._buffers, True)):
                for name, value in table.items():
                    slot = Slot(module, name, is_buffer)
                    if value is not None and slot.is_persistent:
                        self._slots[qualified(prefix, name)] = slot

    def __getitem__(self, name: str) -> torch.Tensor:
        value: torch.Tensor = self._resting.value(self._slots[name])
        refuse_uninitialised(value, name)
        if value.is_meta:
            raise OffloadError(
                f"'{name}' has no values: it is on the meta device, and no hook knows them", name=name
            )
        return value.detach().to("cpu")

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)


def state_dict(model: nn.Module) -> StateDict:
    """The state dict of a model, dispatched or not, as a mapping that gives one tensor at a time.

    Args:
        model: the model.

    Returns:
        Full names to tensors on the CPU. ``dict(…)`` of it is an ordinary state dict, and needs the memory of one.

    Cost: of one tensor, what its copy costs; nothing is copied for what rests on the CPU.

    Example:
        >>> sorted(state_dict(nn.Linear(2, 2)))
        ['bias', 'weight']
    """
    return StateDict(model)
