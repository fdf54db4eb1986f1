"""Where the part of a model on disk rests: in files that have it already, or in a folder that it is written to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from planner.arguments import path_text
from planner.compat.index_rows import file_weights_of_rows
from planner.compat.loaded import weights_in_files
from planner.devices.keys import DeviceKey
from planner.dispatching.hooks.place import rests
from planner.dispatching.install.lookup import TensorLookup
from planner.dispatching.install.record import dispatched_models
from planner.dispatching.offload.weight_files import (
    INDEX,
    OffloadedWeightsLoader,
    PrefixedDataset,
    extract_submodules_state_dict,
    offload_state_dict,
    read_index,
)
from planner.dispatching.tensors.copies import require_plain
from planner.dispatching.tensors.placeholder import PlaceholderTensor, is_offloaded
from planner.dispatching.tensors.resting import RestingPlace
from planner.dispatching.tensors.slots import Slot, modules_of, own_slots
from planner.errors import InvalidInputError, OffloadError
from planner.loading.weights import FileWeights
from planner.names import device_of, qualified

__all__ = ["DiskPart", "disk_part", "has_index", "require_flat", "write_once"]

_NONE: Mapping[str, torch.Tensor] = {}


class DiskPart(NamedTuple):
    """Where the part of a model on disk rests.

    Args:
        weights: its tensors by full name, and those of other parts that were handed in.
        in_files: the same, where a checkpoint's files have all of it, so that blocks can be read ahead.
    """

    weights: Mapping[str, Any]
    in_files: FileWeights | None


class _Places(Mapping[str, Any]):
    """Tensors by full name, each from a place of its own."""

    def __init__(self, places: Mapping[str, RestingPlace], held: Mapping[str, torch.Tensor]) -> None:
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
        """Whether a value is read from a file when it is asked for."""
        return name not in self._held and self._places[name].is_in_file


def disk_part(
    model: nn.Module,
    device_map: Mapping[str, DeviceKey],
    *,
    offload_dir: str | os.PathLike[str] | None,
    offload_index: Mapping[str, Any] | None,
    state_dict: Mapping[str, torch.Tensor] | None,
    offload_buffers: bool,
) -> DiskPart:
    """Finds the part of a model on disk, and writes what no file has yet.

    Args:
        model: the model; what lies on disk already stays where it is.
        device_map: names to devices, some of them "disk"; a name inside of another one counts for itself.
        offload_dir: the folder for what no file has; one with an index has it all.
        offload_index: rows that say in which files it is.
        state_dict: values in memory, which come first.
        offload_buffers: saved buffers rest with the weights.

    Raises:
        InvalidInputError: neither folder nor index where one is needed.
        OffloadError: what cannot be written, or has no values. Fields: ``name``.
        CheckpointError: a file that a row names and that cannot be read. Fields: ``file``, ``reason``.
    """
    slots = _slots_on_disk(model, device_map, offload_buffers=offload_buffers)
    held = dict(state_dict or _NONE)
    places = _resting_places(model, slots, held)
    index = offload_index or None
    left = {name: slot for name, slot in slots.items() if name not in places and name not in held}
    if left and index is None and not has_index(offload_dir):
        loaded = weights_in_files(model, left, offload_buffers=offload_buffers)
        if loaded is not None:
            places.update((name, RestingPlace(loaded, name)) for name in left)
            left = {}
        elif offload_dir is None:
            raise InvalidInputError(
                "We need an `offload_dir` to dispatch this model according to this `device_map`, the following submodules need "
                f"to be offloaded: {', '.join(name for name, key in device_map.items() if key == 'disk')}."
            )
    if left and index is None:
        assert offload_dir is not None
        require_flat(model, left)
        write_once(offload_dir, model, left)
        index = read_index(offload_dir)
    if index is not None:
        # What no row has stays in memory, beside what is in files.
        held.update(
            (name, slot.read())
            for name, slot in left.items()
            if name not in index and not slot.read().is_meta
        )
        left = {name: slot for name, slot in left.items() if name in index}
    in_files = _file_weights(places, left, index or _NONE, held)
    if in_files is not None:
        return DiskPart(in_files, in_files)
    return DiskPart(OffloadedWeightsLoader(_Places(places, held), offload_dir, index or {}), None)


def _slots_on_disk(
    model: nn.Module, device_map: Mapping[str, DeviceKey], *, offload_buffers: bool
) -> dict[str, Slot]:
    named = (
        (qualified(prefix, slot.name), slot)
        for prefix, module in modules_of(model)
        for slot in own_slots(module)
        if rests(slot, offload_buffers=offload_buffers)
    )
    return {name: slot for name, slot in named if device_of(name, device_map) == "disk"}


def _resting_places(
    model: nn.Module, slots: Mapping[str, Slot], held: dict[str, torch.Tensor]
) -> dict[str, RestingPlace]:
    """Of what lies in files already: where. What has other values by now is held."""
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


def _file_weights(
    places: Mapping[str, RestingPlace],
    left: Mapping[str, Slot],
    rows: Mapping[str, Any],
    held: Mapping[str, torch.Tensor],
) -> FileWeights | None:
    """All of it from the files of one checkpoint; None where that cannot be."""
    sources = {id(place.source): place.source for place in places.values()}
    if left and sources:
        return None
    if left:
        found = file_weights_of_rows(left, rows)
        names = {name: name for name in left}
    else:
        only = next(iter(sources.values()), None) if len(sources) == 1 else None
        found = only if isinstance(only, FileWeights) else None
        names = {name: place.key for name, place in places.items()}
    return None if found is None else found.renamed(names, held)


def has_index(folder: str | os.PathLike[str] | None) -> bool:
    """Whether a folder has an index of offloaded weights."""
    return folder is not None and os.path.isfile(
        os.path.join(path_text(folder, "the folder for weights"), INDEX)
    )


def require_flat(model: nn.Module, parts: Iterable[str]) -> None:
    """Raises OffloadError if a tensor cannot be written as plain bytes, before anything is written."""
    for name, tensor in extract_submodules_state_dict(model.state_dict(keep_vars=True), parts).items():
        require_plain(tensor, name)


def write_once(folder: str | os.PathLike[str], model: nn.Module, parts: Iterable[str]) -> None:
    """Writes parts of a model to a folder that has no index yet. Raises OffloadError for what has no values."""
    if has_index(folder):
        return
    state = extract_submodules_state_dict(model.state_dict(), parts)
    for name, tensor in state.items():
        if tensor.is_meta and not is_offloaded(tensor):
            raise OffloadError(
                f"'{name}' is on the meta device, so there is nothing to write: load the model first (planner.load, "
                "planner.load_checkpoint_in_model), or name the folder that holds its weights and their index",
                name=name,
            )
    offload_state_dict(folder, state)
