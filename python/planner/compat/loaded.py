"""What the files of a loaded model still have for it, so that nothing need be written again."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from planner.compat.weight_source import PickledFiles
from planner.dispatching.hooks.place import rests
from planner.dispatching.tensors.copies import has_same_values
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.dispatching.tensors.slots import modules_of, own_slots
from planner.loading.open_files import OpenFiles
from planner.loading.recipe import Pieces, Recipe
from planner.loading.report import file_weights_of
from planner.loading.weights import FileWeights, sources_of
from planner.loading.written_pages import are_unwritten
from planner.names import is_within, qualified

__all__ = ["weights_in_files"]


def weights_in_files(model: nn.Module, names: Iterable[str], *, offload_buffers: bool) -> FileWeights | None:
    """The weights of parts of a loaded model, resting in the files that it was loaded from.

    Args:
        model: any model.
        names: names of parts; "" is the model.
        offload_buffers: saved buffers rest with the weights.

    Returns:
        None where they have to be written to files first: the model was not loaded, or not from safetensors files, something of these
        parts is in no file, or has other values by now.

    Raises:
        OffloadError: a file was written to since. Fields: ``name``.

    Cost: values that are no views of the files are compared with them, which reads them.
    """
    weights = file_weights_of(model)
    if weights is None or isinstance(weights.files, PickledFiles):
        return None
    parts = tuple(names)
    tensors = {
        name: slot.read()
        for prefix, module in modules_of(model)
        for slot in own_slots(module)
        if rests(slot, offload_buffers=offload_buffers)
        for name in (qualified(prefix, slot.name),)
        if any(is_within(name, part) for part in parts)
    }
    if not tensors.keys() <= weights.wanted.keys():
        return None
    wanted = {name: weights.wanted[name] for name in tensors}
    numbers = {row.file for found in wanted.values() for row in sources_of(found.recipe)}
    weights.files.require_same(numbers)
    if not all(_is_as_stored(tensor, weights[name]) for name, tensor in tensors.items()):
        return None
    if not all(_are_as_stored(weights.files, row.recipe) for row in wanted.values()):
        return None
    # What has no values now has not been written to; others in its file may have been.
    valued = {
        row.file
        for name, tensor in tensors.items()
        if is_offloaded(tensor) or not tensor.is_meta
        for row in sources_of(wanted[name].recipe)
    }
    if not are_unwritten(weights.files.files[number].map() for number in valued):
        return None
    return FileWeights(weights.files, wanted)


def _is_as_stored(tensor: torch.Tensor, stored: torch.Tensor) -> bool:
    """Whether a tensor has the values of the files, as this process sees them."""
    if is_offloaded(tensor) or tensor.is_meta:
        return True
    if stored.dtype != tensor.dtype or stored.shape != tensor.shape:
        return False
    is_view = stored.data_ptr() == tensor.data_ptr() and stored.stride() == tensor.stride()
    return is_view or has_same_values(tensor.detach().cpu(), stored.detach())


def _are_as_stored(files: OpenFiles, recipe: Recipe) -> bool:
    """Whether pieces that are mapped one after the other have the values of the files, also where no tensor's version tells it."""
    if not isinstance(recipe, Pieces) or not files.pieces.is_mapped(recipe):
        return True
    mapped = files.pieces.tensor(recipe)
    if mapped is None:
        return True
    flat = mapped.view(-1).view(torch.uint8)
    return all(
        torch.equal(flat[at : at + row.nbytes], files.view(row).view(-1).view(torch.uint8))
        for row, at in recipe.pieces
    )
