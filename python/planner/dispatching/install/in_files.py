"""What of a model lies in files already, so that the next dispatch can leave it there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from torch import nn

from planner.devices.keys import DeviceKey
from planner.dispatching.hooks.place import rests
from planner.dispatching.install.lookup import TensorLookup
from planner.dispatching.install.record import dispatched_models
from planner.dispatching.offload.reads_ahead import Streams
from planner.dispatching.offload.weight_files import PrefixedDataset
from planner.dispatching.tensors.placeholder import PlaceholderTensor
from planner.dispatching.tensors.resting import RestingPlace
from planner.dispatching.tensors.slots import Slot, modules_of, own_slots
from planner.errors import PlanMismatchError
from planner.names import device_of, listed, named, nearest_key, qualified

__all__ = [
    "CheckpointWeights",
    "LeftInFiles",
    "RestingWeights",
    "left_in_files",
    "only_source",
    "resting_places",
    "slots_on_disk",
]


@runtime_checkable
class CheckpointWeights(Protocol):
    """Weights in a checkpoint's files, as the loader leaves them.

    Args:
        lists_files: see :class:`planner.loading.weights.FileWeights`.
        streams_again: makes what reads them ahead for another dispatch; None where nothing has read them ahead before.
    """

    lists_files: bool
    streams_again: Callable[[Any], Streams] | None

    def renamed(self, names: Mapping[str, str], held: Mapping[str, Any] = ...) -> Self:
        """Some of these weights under other names, and more that are in memory."""


class RestingWeights(Mapping[str, Any]):
    """Weights by full name, each from a place of its own.

    Args:
        places: where they rest.
        held: values of more names, which come first.
    """

    def __init__(self, places: Mapping[str, RestingPlace], held: Mapping[str, Any]) -> None:
        self._places, self._held = places, held

    def __getitem__(self, name: str) -> Any:
        return self._held[name] if name in self._held else self._places[name].value(name)

    def __contains__(self, name: object) -> bool:
        return name in self._held or name in self._places

    def __iter__(self) -> Iterator[str]:
        yield from self._held
        yield from (name for name in self._places if name not in self._held)

    def __len__(self) -> int:
        return len(self._held.keys() | self._places.keys())

    def is_in_file(self, name: str) -> bool:
        """Whether a value is read from a file when it is asked for, or was put in the place of one that was."""
        return name in self._held or self._places[name].is_in_file


class LeftInFiles(NamedTuple):
    """The part of a model on disk, where it is.

    Args:
        weights: its tensors by full name.
        streams: what reads them ahead; None where nothing does.
        lists_files: as of :class:`CheckpointWeights`.
    """

    weights: Mapping[str, Any]
    streams: Streams | None
    lists_files: bool


def left_in_files(
    model: nn.Module, device_map: Mapping[str, DeviceKey], *, offload_buffers: bool
) -> LeftInFiles:
    """The part of a model on disk that lies in files already.

    Args:
        model: the model; only looked at.
        device_map: names to devices, some of them "disk".
        offload_buffers: saved buffers rest with the weights.

    Raises:
        PlanMismatchError: some of it is in memory. Fields: ``findings``.
    """
    slots = slots_on_disk(model, device_map, offload_buffers=offload_buffers)
    held: dict[str, Any] = {}
    places = resting_places(model, slots, held)
    in_memory = [name for name in slots if name not in places]
    if in_memory:
        on_disk = {name: key for name, key in device_map.items() if key == "disk"}
        parts = list(dict.fromkeys(nearest_key(name, on_disk) or name for name in in_memory))
        raise PlanMismatchError(
            f"the plan puts {listed(map(named, parts), most=3)} on disk, but their weights are in memory, and this function writes "
            "no files: planner.dispatch_model(model, plan.device_map, offload_dir=...), or planner.disk_offload(model, offload_dir) for the "
            "whole model, writes them to a folder; planner.load(folder, model, plan) takes what the checkpoint's own files have in place of them, and writes nothing",
            findings=tuple(parts),
        )
    source = only_source(places)
    if not isinstance(source, CheckpointWeights):
        return LeftInFiles(RestingWeights(places, held), None, False)
    weights: Any = source.renamed({name: place.key for name, place in places.items()}, held)
    streams = None if source.streams_again is None else source.streams_again(weights)
    return LeftInFiles(weights, streams, source.lists_files)


def slots_on_disk(
    model: nn.Module, device_map: Mapping[str, DeviceKey], *, offload_buffers: bool
) -> dict[str, Slot]:
    """What a device map puts on disk, by full name."""
    by_name = (
        (qualified(prefix, slot.name), slot)
        for prefix, module in modules_of(model)
        for slot in own_slots(module)
        if rests(slot, offload_buffers=offload_buffers)
    )
    return {name: slot for name, slot in by_name if device_of(name, device_map) == "disk"}


def resting_places(
    model: nn.Module, slots: Mapping[str, Slot], held: dict[str, Any]
) -> dict[str, RestingPlace]:
    """Of what lies in files already: where.

    Args:
        held: gets what has other values by now.
    """
    lookup = TensorLookup(model, dispatched_models(model))
    found: dict[str, RestingPlace] = {}
    for name, slot in slots.items():
        tensor, place = slot.read(), lookup.resting_place(slot)
        if not isinstance(tensor, PlaceholderTensor) or place is None or not place.is_in_file:
            continue
        if tensor.kept is not None:
            held.setdefault(name, tensor.kept)
        found[name] = _unwrapped(place)
    return found


def _unwrapped(place: RestingPlace) -> RestingPlace:
    while isinstance(place.source, PrefixedDataset):
        place = RestingPlace(place.source.dataset, f"{place.source.prefix}{place.key}")
    return place


def only_source(places: Mapping[str, RestingPlace]) -> Mapping[str, Any] | None:
    """What all of them rest in, if that is one thing."""
    sources = {id(place.source): place.source for place in places.values()}
    return next(iter(sources.values())) if len(sources) == 1 else None
