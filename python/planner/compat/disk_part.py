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
from planner.dispatching.install.in_files import RestingWeights, only_source, resting_places, slots_on_disk
from planner.dispatching.install.lookup import TensorLookup
from planner.dispatching.install.record import dispatched_models
from planner.dispatching.offload.weight_files import (
    INDEX,
    OffloadedWeightsLoader,
    extract_submodules_state_dict,
    offload_state_dict,
    read_index,
)
from planner.dispatching.tensors.copies import require_plain
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.dispatching.tensors.resting import RestingPlace
from planner.dispatching.tensors.slots import Slot, own_slots
from planner.errors import InvalidInputError, OffloadError
from planner.loading.weights import FileWeights
from planner.names import qualified
from planner.spelling import shown

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
        InvalidInputError: neither folder nor index where one is needed; no mappings.
        OffloadError: what cannot be written, or has no values. Fields: ``name``.
        CheckpointError: a file that a row names and that cannot be read. Fields: ``file``, ``reason``.
    """
    for name, given in (("offload_index", offload_index), ("state_dict", state_dict)):
        if given is not None and not isinstance(given, Mapping):
            raise InvalidInputError(f"{name} must be a mapping by full name; got {shown(given)}")
    slots = slots_on_disk(model, device_map, offload_buffers=offload_buffers)
    held = dict(state_dict or _NONE)
    places = resting_places(model, slots, held)
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
    return DiskPart(OffloadedWeightsLoader(RestingWeights(places, held), offload_dir, index or {}), None)


def _file_weights(
    places: Mapping[str, RestingPlace],
    left: Mapping[str, Slot],
    rows: Mapping[str, Any],
    held: Mapping[str, torch.Tensor],
) -> FileWeights | None:
    """All of it from the files of one checkpoint; None where that cannot be."""
    if left and places:
        return None
    if left:
        found: Any = file_weights_of_rows(left, rows)
        names = {name: name for name in left}
    else:
        found = only_source(places)
        names = {name: place.key for name, place in places.items()}
    return found.renamed(names, held) if isinstance(found, FileWeights) else None


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
    offload_state_dict(folder, _Values(model, state))


class _Values(Mapping[str, torch.Tensor]):
    """Entries of a model's state dict, those that rest elsewhere each read when it is asked for."""

    def __init__(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        self._state = state
        self._lookup = TensorLookup(model, dispatched_models(model))
        self._offloaded = {
            name: slot
            for prefix, module in model.named_modules(remove_duplicate=False)
            for slot in own_slots(module)
            for name in (qualified(prefix, slot.name),)
            if name in state and is_offloaded(state[name])
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        slot = self._offloaded.get(name)
        if slot is None:
            return self._state[name]
        value: torch.Tensor = self._lookup.value(slot)
        return value.detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)
