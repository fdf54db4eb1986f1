"""The state dict of a dispatched model: every tensor with its values, one at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from typing import Any, Final

import torch
from torch import nn

from planner.dispatching.install.lookup import TensorLookup
from planner.dispatching.install.record import dispatched_models
from planner.dispatching.tensors.own_addresses import OwnAddresses
from planner.dispatching.tensors.slots import Slot, refuse_uninitialised
from planner.errors import OffloadError
from planner.names import qualified

__all__ = ["StateDict", "state_dict"]


class StateDict(MutableMapping[str, torch.Tensor]):
    """Names to tensors; a tensor is brought to the CPU when it is asked for, and nothing of it is kept.

    Args:
        model: the model.

    Guarantee: the names of ``model.state_dict()``, in its order. Tied names give the same memory, and other names never do, not
        even one after the other, so that libraries can tell ties by addresses. What is set or deleted here is here alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._slots: dict[str, Slot] = {}
        self._set: dict[str, torch.Tensor] = {}
        self._addresses = OwnAddresses()
        self._resting = TensorLookup(model, dispatched_models(model))
        for prefix, module in model.named_modules(remove_duplicate=False):
            for table, is_buffer in ((module._parameters, False), (module._buffers, True)):
                for name, value in table.items():
                    slot = Slot(module, name, is_buffer)
                    if value is not None and slot.is_persistent:
                        self._slots[qualified(prefix, name)] = slot

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._set:
            return self._set[name]
        slot = self._slots[name]
        value: Any = self._resting.value(slot)
        # Before another name refers to it.
        is_made_anew = sys.getrefcount(value) <= _REFERENCES_OF_A_NAME
        refuse_uninitialised(value, name)
        if value.is_meta:
            raise OffloadError(
                f"'{name}' has no values: it is on the meta device, and no hook knows them", name=name
            )
        if (is_made_anew or value.device.type != "cpu") and _is_dense(value):
            # Tied slots hold one tensor, or one placeholder.
            return self._addresses.copy(value.detach(), id(slot.read()))
        found: torch.Tensor = value.detach().to("cpu")
        return found

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        self._set[name] = tensor

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._slots.pop(name, None)
        self._set.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        yield from self._slots
        yield from (name for name in self._set if name not in self._slots)

    def __len__(self) -> int:
        return len(self._slots.keys() | self._set.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._slots or name in self._set


def _is_dense(tensor: torch.Tensor) -> bool:
    plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout == torch.strided
    return plain and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _references_of_a_name() -> int:
    """What CPython counts for an object that one local name refers to."""
    value = object()
    return sys.getrefcount(value)


_REFERENCES_OF_A_NAME: Final = _references_of_a_name()


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
