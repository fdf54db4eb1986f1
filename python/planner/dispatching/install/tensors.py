"""The tensors of a model before and after a dispatch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from planner.dispatching.hooks.place import moves_in_place, placed
from planner.dispatching.install.lookup import TensorLookup
from planner.dispatching.install.originals import joined
from planner.dispatching.install.record import Dispatched
from planner.dispatching.install.regions import PlacedTensor, Regions
from planner.dispatching.install.request import DispatchRequest
from planner.dispatching.tensors.copies import copy_marks, like_parameter, require_offloadable
from planner.dispatching.tensors.placeholder import PlaceholderTensor
from planner.dispatching.tensors.resting import RestingPlace
from planner.dispatching.tensors.slots import Slot
from planner.errors import OffloadError, PlanMismatchError

__all__ = ["Values"]


_META = torch.device("meta")


def _value(resting: TensorLookup, slot: Slot, known: dict[int, Any]) -> Any:
    found = slot.read()
    if not isinstance(found, PlaceholderTensor):
        return found
    if id(found) not in known:
        value = resting.value(slot)
        is_own = isinstance(value, nn.Parameter) and value.requires_grad == found.requires_grad
        place = resting.resting_place(slot)
        if not slot.is_buffer and not is_own and place is not None and place.is_in_file:
            # Files know nothing of gradients, and some give plain tensors.
            value = nn.Parameter(value.detach(), requires_grad=found.requires_grad)
            copy_marks(found, value)
        known[id(found)] = value
    return known[id(found)]


def _lies_on(value: Any) -> torch.device:
    # A placeholder says where its module runs.
    device: torch.device = _META if value.is_meta else value.device
    return device


class Values:
    """The tensors of a model: where each comes from, and the copies that the plan asks for."""

    def __init__(
        self, model: nn.Module, layout: Regions, engaged: list[Dispatched], request: DispatchRequest
    ) -> None:
        self.places = layout.places
        self.request = request
        resting = TensorLookup(model, engaged)
        # By placeholder, because files give a new tensor each time, and tied ones are one.
        known: dict[int, Any] = {}
        values = [
            None if self._has_weight(place) else _value(resting, place.slot, known) for place in self.places
        ]
        # What goes on resting in a file is not read, unless it is tied to what does not.
        self.before = [
            known.get(id(place.slot.read()), place.slot.read()) if value is None else value
            for place, value in zip(self.places, values, strict=True)
        ]
        self.original_devices = [request.home or _lies_on(value) for value in self.before]
        self._recall(engaged)
        resident = {
            (id(value), place.placement.execution_device)
            for place, value in zip(self.places, self.before, strict=True)
            if not self._wants_rest(place)
        }
        # A tied tensor that lies where the other one runs is simply there.
        self.is_resting = [
            self._wants_rest(place) and (id(value), place.placement.execution_device) not in resident
            for place, value in zip(self.places, self.before, strict=True)
        ]
        self.after: list[Any] = []

    def _recall(self, engaged: list[Dispatched]) -> None:
        """What an earlier dispatch knows: where tensors came from, and which were tied before they were apart."""
        known = {
            (id(row.slot.table), row.slot.name): row for dispatched in engaged for row in dispatched.originals
        }
        # By now these lie where they were made or copied, which was the choice of that dispatch.
        new = {
            (id(slot.table), slot.name): device
            for dispatched in engaged
            for slot, device in dispatched.new_slots()
        }
        first: dict[int, Any] = {}
        for index, place in enumerate(self.places):
            key = (id(place.slot.table), place.slot.name)
            row = known.get(key)
            if row is None:
                if not self.before[index].is_meta:
                    self.original_devices[index] = new.get(key, self.original_devices[index])
                continue
            self.original_devices[index] = row.device
            if row.is_apart():
                value = self.before[index]
                self.before[index] = joined(value, first.setdefault(row.group, value))

    def hook_device(self, index: int) -> torch.device:
        """Where a resting tensor goes when another library takes its hook off."""
        place, weights = self.places[index], self.request.weights
        is_on_disk = place.placement.storage_device is None
        if weights is not None and is_on_disk and self.request.stays_in_files and self._has_weight(place):
            return _META if RestingPlace(weights, place.name).is_in_file else self.original_devices[index]
        return self.original_devices[index]

    def _wants_rest(self, place: PlacedTensor) -> bool:
        return place.wants_rest(offload_buffers=self.request.offload_buffers)

    def check(self) -> None:
        """Raises before anything is copied."""
        absent = [
            place.name
            for place, value in zip(self.places, self.before, strict=True)
            if value.is_meta and not self._has_weight(place)
        ]
        if absent:
            raise PlanMismatchError(
                f"{len(absent)} tensors are on the meta device, where there is nothing to place, the first is '{absent[0]}'; "
                "load the weights before dispatching",
                findings=tuple(absent),
            )
        for place, value, is_resting in zip(self.places, self.before, self.is_resting, strict=True):
            if not is_resting:
                continue
            if place.placement.storage_device is None and not self._has_weight(place):
                raise OffloadError(f"'{place.name}' shall lie on disk, but no file has it", name=place.name)
            require_offloadable(value, place.name)

    def _has_weight(self, place: PlacedTensor) -> bool:
        weights = self.request.weights
        return weights is not None and self._wants_rest(place) and place.name in weights

    def move(self) -> None:
        """Makes the copies. Tied tensors become one copy for each device."""
        made: dict[tuple[int, torch.device], Any] = {}
        first: dict[int, Any] = {}
        for place, value, is_resting in zip(self.places, self.before, self.is_resting, strict=True):
            device = place.placement.storage_device if is_resting else place.placement.execution_device
            if is_resting and self._has_weight(place):
                self.after.append(value)
                continue
            assert device is not None
            key = (id(value), device)
            if key not in made:
                tensor = placed(value, device, place.name)
                if tensor is value and moves_in_place(value, first.get(id(value), value)):
                    # The tensor itself goes with the first of its places.
                    tensor = like_parameter(value, value.detach().clone())
                made[key] = tensor
                first.setdefault(id(value), tensor)
            self.after.append(made[key])
