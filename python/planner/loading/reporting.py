"""What a load has done with each tensor, read from what was judged and what was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from planner.loading.open_files import OpenFiles
from planner.loading.recipe import Computed, Part, Pieces
from planner.loading.report import LoadedTensor, LoadReport, Way
from planner.loading.residents import Residents
from planner.loading.stored import StoredTensor
from planner.loading.targets import Judged, Target
from planner.loading.weights import FileWeights, WantedTensor, sources_of

__all__ = ["all_weights", "report_of"]

_WAYS: Final[Mapping[type, Way]] = {
    StoredTensor: "view",
    Part: "part",
    Pieces: "pieces",
    Computed: "computed",
}


def all_weights(judged: Judged, files: OpenFiles) -> FileWeights:
    """Every tensor that the files have for a model, by live name."""
    wanted = {
        place.name: target.wanted
        for target in judged.targets
        if target.wanted is not None
        for place in target.places
    }
    return FileWeights(files, wanted)


def report_of(judged: Judged, residents: Residents, files: OpenFiles) -> LoadReport:
    """The report of a load, but for what was written and what is streamed."""
    values = {id(target): value for target, value in residents.values}
    rows = []
    for target in judged.targets:
        value = values[id(target)]
        is_copied = value.device.type == "cpu" and id(target) in residents.copied
        numbers = [] if target.wanted is None else [row.file for row in sources_of(target.wanted.recipe)]
        rows.append(
            LoadedTensor(
                names=tuple(place.name for place in target.places),
                files=tuple(files.files[number].shown for number in dict.fromkeys(numbers)),
                way=_way(target.wanted, is_copied=is_copied, is_new=value is not target.found),
                device=_place_of(target, value),
                nbytes=value.nbytes,
            )
        )
    # What is never saved is made by the model's own code, as it was when the model was saved.
    made = [target for target in judged.absent if any(place.slot.is_persistent for place in target.places)]
    return LoadReport(
        tensors=tuple(rows),
        read_bytes=residents.read_bytes,
        copied_bytes=residents.copied_bytes,
        unexpected=judged.unexpected,
        missing=(*judged.kept, *(target.name for target in made)),
    )


def _way(wanted: WantedTensor | None, *, is_copied: bool, is_new: bool) -> Way:
    if wanted is None:
        return "initialised" if is_new else "kept"
    if wanted.dtype != wanted.recipe.dtype:
        return "cast"
    is_stored = isinstance(wanted.recipe, StoredTensor | Part)
    return "copy" if is_stored and (is_copied or not wanted.is_view) else _WAYS[type(wanted.recipe)]


def _place_of(target: Target, value: torch.Tensor) -> str:
    if not value.is_meta:
        return str(value.device)
    storage = target.places[0].placement.storage_device
    return "disk" if storage is None else str(storage)
