"""The steps of a load: hold the model against the files, make what stays, write it, and leave the rest to the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from planner.dispatching.install.prepare import regions_of
from planner.dispatching.install.regions import Regions
from planner.dispatching.install.request import DispatchRequest
from planner.loading.commit import commit
from planner.loading.converted import Converted
from planner.loading.doubled import settle_doubled
from planner.loading.initial import initial_values
from planner.loading.open_files import OpenFiles
from planner.loading.options import LoadOptions
from planner.loading.paging import joined, page_ahead, spans_of
from planner.loading.progress import progress_of
from planner.loading.recipes import find_recipes
from planner.loading.report import Loaded, remember
from planner.loading.reporting import all_weights, report_of
from planner.loading.residents import Residents, make_residents
from planner.loading.saving import saving_steps
from planner.loading.source import CheckpointSource, require_nothing
from planner.loading.stored import StoredTensor
from planner.loading.streaming.caching import spare_bytes
from planner.loading.streaming.files import FileReads
from planner.loading.streams import ModelStreams
from planner.loading.targets import Judged, Target, judge
from planner.loading.weights import FileWeights, WantedTensor, sources_of

__all__ = ["LoadSource", "PreparedLoad", "prepare_load"]

_CPU = torch.device("cpu")


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
        converted: what rests in files, and is to be written in another form first.
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
    converted: Converted | None
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
        if self.converted is not None and resting is not None and weights is None:
            self._commit_converted(resting, self.converted)
        else:
            self._commit(resting if weights is None else weights, is_dispatched=is_dispatched)

    def _commit_converted(self, resting: FileWeights, converted: Converted) -> None:
        total_bytes = _total_bytes(self.judged.targets)
        try:
            with progress_of(self.options.progress, total_bytes, total_bytes - converted.nbytes) as advance:
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
        self,
        weights: Mapping[str, torch.Tensor] | None,
        *,
        is_dispatched: bool = True,
        written_bytes: int = 0,
    ) -> None:
        cached = frozenset(
            place.name for place in self.regions.places if place.placement.storage_device == _CPU
        )
        staying = (row for row in self.residents.values if id(row[0]) not in self.residents.copied)
        planned_bytes = sum(value.nbytes for _, value in staying if value.device == _CPU)
        in_place = self._in_place()
        order = [
            (
                target.name,
                spans_of(target.wanted) if target.wanted is not None and id(target) in in_place else (),
            )
            for target in self.judged.targets
        ]
        streams = ModelStreams(weights, self.options, self.request.room_bytes, cached, planned_bytes, order)
        request = replace(self.request, weights=weights, reads_ahead=streams.made) if is_dispatched else None
        commit(self.model, self.residents.values, request, self.regions, self.attributes)
        streams.start()
        report = replace(
            report_of(self.judged, self.residents, self.source.files),
            written_bytes=written_bytes,
            staging_bytes=streams.staging_bytes,
            notes=self.notes,
        )
        remember(self.model, Loaded(report, all_weights(self.judged, self.source.files), streams.progress))
        page_ahead(
            self.model,
            FileReads(self.source.files),
            joined(span for _, spans in order for span in spans),
            spare_bytes(0),
        )

    def _in_place(self) -> frozenset[int]:
        """Ids of targets that stay on the CPU as they lie in the files."""
        return frozenset(
            id(target)
            for target, value in self.residents.values
            if value.device == _CPU and id(target) not in self.residents.copied
        )


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
        require_nothing((*apart.findings, *judged.findings), source.name, judged.advice)
        leaves_missing = options.leniency.leaves_missing
        initial = initial_values(
            model, [target.name for target in judged.absent if not (leaves_missing and target.is_saved)]
        )
        require_nothing(() if leaves_missing else initial.findings, source.name)
        slow = source.files.slow_files() if options.copy == "auto" else frozenset()

        def copies(wanted: WantedTensor) -> bool:
            if not slow:
                return options.copy is True
            return any(row.file in slow for row in sources_of(wanted.recipe))

        with progress_of(options.progress, _total_bytes(judged.targets)) as advance:
            residents = make_residents(
                judged.targets,
                source.files,
                initial.values,
                offload_buffers=request.offload_buffers,
                copies=copies,
                advance=advance,
            )
            # What rests in files is done, but for what is yet to be written.
            resting_bytes = sum(value.nbytes for _, value in residents.values if value.is_meta)
            converted = _converted(residents.weights, options)
            advance(resting_bytes - (0 if converted is None else converted.nbytes))
    notes = (*recipes.notes, *apart.notes, *residents.notes)
    attributes = saving_steps(model, recipes, apart.ended)
    return PreparedLoad(
        model, source, request, regions, judged, residents, options, converted, attributes, notes
    )


def _converted(weights: FileWeights | None, options: LoadOptions) -> Converted | None:
    if weights is None or options.convert == "fetch" or options.offload_folder is None:
        return None
    return Converted.of(weights, options.offload_folder)


def _total_bytes(targets: Sequence[Target]) -> int:
    return sum(target.wanted.nbytes for target in targets if target.wanted is not None)
