"""Where tensors lay before the first dispatch, and how they return there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from planner.dispatching.hooks.place import moves_in_place, placed
from planner.dispatching.tensors.copies import has_same_values
from planner.dispatching.tensors.journal import Journal
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.dispatching.tensors.slots import Slot

__all__ = ["Made", "OriginalPlacement", "joined", "send"]

# Tensors on devices, by what they were made from.
Made = dict[tuple[int, torch.device], Any]


@dataclass(frozen=True, slots=True, eq=False)
class OriginalPlacement:
    """Where a tensor lay before the first dispatch.

    Args:
        slot: its slot.
        device: where it lay.
        group: a number that tied tensors share.
        installed: of tied tensors that are apart now, what was put into the slot.
        execution_device: where it was put to stay; None for what rests elsewhere.
    """

    slot: Slot
    device: torch.device
    group: int
    installed: Any
    execution_device: torch.device | None

    def is_displaced(self) -> bool:
        """Whether what lies in the slot now is not where its module runs. Numbers on the CPU go with anything."""
        found = self.slot.read()
        if (
            self.execution_device is None
            or found is None
            or is_offloaded(found)
            or found.device == self.execution_device
        ):
            return False
        return not (found.dim() == 0 and found.device.type == "cpu")

    def is_apart(self) -> bool:
        """Whether the slot still holds a copy of a tensor that was one before; what others put there is theirs."""
        return self.installed is not None and self.slot.read() is self.installed


def send(journal: Journal, slot: Slot, tensor: Any, device: torch.device, made: Made) -> None:
    """Moves what lies in a slot to a device; plain parameters stay the objects they are, and tied tensors tied."""
    key = (id(tensor), device)
    if key not in made:
        made[key] = placed(tensor, device, slot.name)
        if moves_in_place(tensor, made[key]):
            journal.move(tensor, made[key])
            made[key] = tensor
    journal.set(slot.table, slot.name, made[key])


def joined(tensor: Any, first: Any) -> Any:
    """The first of tied tensors that were apart on several devices, unless one of them has other values."""
    if tensor is first or tensor.shape != first.shape or tensor.dtype != first.dtype:
        return tensor
    with torch.no_grad():
        return first if has_same_values(tensor.cpu(), first.cpu()) else tensor
