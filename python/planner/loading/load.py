"""The steps of a load: hold the model against the files, make what stays, write it, and leave the rest to the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import nn

from planner.dispatching.install.prepare import regions_of
from planner.dispatching.install.regions import PlacedTensor, Regions
from planner.dispatching.install.request import DispatchRequest
from planner.loading.commit import commit
from planner.loading.converted import Converted
from planner.loading.initial import initial_values
from planner.loading.open_files import OpenFiles
from planner.loading.options import LoadOptions
from planner.loading.doubled import settle_doubled
from planner.loading.progress import progress_of
from planner.loading.recipe import Computed, Part, Pieces
from planner.loading.recipes import find_recipes
from planner.loading.report import Loaded, LoadedTensor, LoadReport, Way, remember
from planner.loading.residents import Residents, is_file_backed, make_residents
from planner.loading.source import CheckpointSource, require_nothing
from planner.loading.saving import saving_steps
from planner.loading.stored import StoredTensor
from planner.loading.targets import Judged, Target, judge
from planner.loading.weights import FileWeights, WantedTensor, sources_of

__all__ = ["LoadSource", "PreparedLoad", "prepare_load"]


@dataclass(frozen=True, slots=True, eq=False)
class LoadSource:
    """What is loaded from.

    Args:
        name: what messages call it.
        files: the open files.
        rows: their tensors.
    """

    name: str
    files: OpenFiles
    rows: Sequence[StoredTensor]

    @classmethod
    def of(cls, source: CheckpointSource) -> LoadSource:
        """An open checkpoint."""
        return cls(source.files.name, source.opened, source.rows)


@dataclass(frozen=True, slots=True, eq=False)
class PreparedLoad:
    """Everything made, and nothing changed yet.

    Args:
        model: the model.
        source: the files.
        request: where everything lies and runs.
        regions: the same applied to the model.
        judged: the model beside the files.
        residents: what was made, and what rests in the files.
        options: how it is loaded.
        attributes: what the model itself gets beside tensors.
        notes: what else to know of the load.
    """

    model: nn.Module
    source: LoadSource
    request: DispatchRequest
    regions: Regions
    judged: Judged
    residents: Residents
    options: LoadOptions
    attributes: Mapping[str, object]
    notes: tuple[str, ...]

    def commit(
        self, weights: Mapping[str, torch.Tensor] | None = None, *, is_dispatched: bool = True
    ) -> None:
        """Writes the tensors, and installs what the map asks for.

        Args:
            weights: what rests elsewhere, in the place of what rests in the files.
            is_dispatched: whether anything is installed; otherwise what rests in the files stays without values.

        Raises:
            InvalidInputError, OffloadError: what is to be stored in another form cannot be written. Fields: ``name``.

        Guarantee: when it raises, also for an interrupt, the model is as it was, and so is the folder that is written to.
        """
        resting = self.residents.weights
        folder = self.options.offload_folder if self.options.convert == "store" else None
        converted = None
        if folder is not None and resting is not None and weights is None:
            converted = Converted.of(resting, folder)
        if converted is not None and resting is not None:
            self._commit_converted(resting, converted)
        else:
            self._commit(resting if weights is None else weights, is_dispatched=is_dispatched)

    def _commit_converted(self, resting: FileWeights, converted: Converted) -> None:
        total_bytes = _total_bytes(self.judged.targets)
        done_bytes = sum(value.nbytes for _, value in self.residents.values if not value.is_meta)
        try:
            with progress_of(self.options.progress, total_bytes, done_bytes) as advance:
                files, elsewhere = converted.store(advance)
            for target, value in self.residents.values:
                if value.is_meta and target.wanted is not None:
                    target.wanted = elsewhere.get(target.wanted.name, target.wanted)
            moved = replace(self, source=replace(self.source, files=files))
            moved._commit(resting.moved(files, elsewhere), written_bytes=converted.written_bytes)
        except BaseException:
            converted.discard()
            raise

    def _commit(
        self, weights: Mapping[str, torch.Tensor] | None, *, is_dispatched: bool = True, written_bytes: int = 0
    ) -> None:
        request = replace(self.request, weights=weights) if is_dispatched else None
        commit(self.model, self.residents.values, request, self.regions, self.attributes)
        report = replace(self._report(), written_bytes=written_bytes)
        remember(self.model, Loaded(report, self._all_weights(), None))

    def _all_weights(self) -> FileWeights:
        """Every tensor that the files have for the model, by live name."""
        wanted = {
            place.name: target.wanted
            for target in self.judged.targets
            if target.wanted is not None
            for place in target.places
        }
        return FileWeights(self.source.files, wanted)

    def _report(self) -> LoadReport:
        made = {id(target): value for target, value in self.residents.values}
        rows = tuple(self._row(target, made[id(target)]) for target in self.judged.targets)
        absent = [target.name for target in self.judged.absent]
        return LoadReport(
            tensors=rows,
            read_bytes=self.residents.read_bytes,
            copied_bytes=self.residents.copied_bytes,
            unexpected=self.judged.unexpected,
            missing=(*self.judged.kept, *absent),
            notes=self.notes,
        )

    def _row(self, target: Target, value: torch.Tensor) -> LoadedTensor:
        wanted = target.wanted
        way: Way = ("initialised" if value is not target.found else "kept") if wanted is None else "view"
        if wanted is not None:
            is_cast = wanted.dtype != wanted.recipe.dtype
            is_copied = value.device.type == "cpu" and id(target) in self.residents.copied
            way = (
                "cast" if is_cast else "copy" if is_copied and wanted.is_view else _WAYS[type(wanted.recipe)]
            )
        numbers = [] if wanted is None else [row.file for row in sources_of(wanted.recipe)]
        files = tuple(self.source.files.files[number].shown for number in dict.fromkeys(numbers))
        names = tuple(place.name for place in target.places)
        return LoadedTensor(
            names=names, files=files, way=way, device=self._place_of(target, value), nbytes=value.nbytes
        )

    def _place_of(self, target: Target, value: torch.Tensor) -> str:
        if not value.is_meta:
            return str(value.device)
        storage = target.places[0].placement.storage_device
        return "disk" if storage is None else str(storage)


_WAYS: Final[Mapping[type, Way]] = {
    StoredTensor: "view",
    Part: "part",
    Pieces: "pieces",
    Computed: "computed",
}


def prepare_load(
    model: nn.Module, source: LoadSource, request: DispatchRequest, options: LoadOptions
) -> PreparedLoad:
    """Judges everything, then makes what stays; the model is only looked at.

    Args:
        model: the model, on meta or with values.
        source: the files.
        request: where everything lies and runs.
        options: how it is loaded.

    Raises:
        CheckpointError: whatever does not fit, all at once. Fields: ``file``, ``reason``, ``findings``.
        PlanMismatchError, InvalidTreeError: a map that does not fit the model.
        OffloadError: a number that the wanted dtype cannot hold. Fields: ``name``.
    """
    regions = regions_of(model, request)
    recipes = find_recipes(source.rows, model, options.rename)
    with torch.inference_mode(False), torch.no_grad():
        apart = settle_doubled(recipes, source.files)
        judged = judge(regions.places, recipes, apart.ties, options.dtype_of, options.leniency)
        require_nothing((*apart.findings, *judged.findings), source.name)
        initial = initial_values(model, [target.name for target in judged.absent])
        require_nothing(initial.findings, source.name)
        slow = source.files.slow_files() if options.copy == "auto" else frozenset()

        def backed(place: PlacedTensor) -> bool:
            return is_file_backed(place, offload_buffers=request.offload_buffers)

        def copies(wanted: WantedTensor) -> bool:
            return options.copy is True or any(row.file in slow for row in sources_of(wanted.recipe))

        with progress_of(options.progress, _total_bytes(judged.targets)) as advance:
            residents = make_residents(
                judged.targets,
                source.files,
                initial.values,
                is_file_backed=backed,
                copies=copies,
                advance=advance,
            )
    notes = (*recipes.notes, *apart.notes)
    return PreparedLoad(
        model, source, request, regions, judged, residents, options, saving_steps(model, recipes), notes
    )


def _total_bytes(targets: Sequence[Target]) -> int:
    return sum(target.wanted.nbytes for target in targets if target.wanted is not None)
