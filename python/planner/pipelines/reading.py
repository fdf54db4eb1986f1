"""The tensors of one stage, out of the files of the whole model: judged by headers first, then read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from planner.checkpoint.files import CheckpointFiles
from planner.dispatching.install.regions import Placement, find_regions
from planner.loading.commit import commit
from planner.loading.doubled import settle_doubled
from planner.loading.initial import initial_values
from planner.loading.live import live_tensors
from planner.loading.open_files import OpenFiles, open_headers
from planner.loading.options import cast_rule, wanted_dtype
from planner.loading.recipes import find_recipes
from planner.loading.residents import make_residents
from planner.loading.skeleton import build_skeleton
from planner.loading.source import find_weights, require_nothing, stored_tensors
from planner.loading.stored import StoredTensor
from planner.loading.stored_names import StoredNames, read_names
from planner.loading.targets import Judged, Leniency, judge

__all__ = ["StageWeights", "WholeModel", "open_whole"]

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class WholeModel:
    """A checkpoint's model, and the names in its files.

    Args:
        model: on meta.
        files: what the place holds; opened only where no index says what is in them.
        names: what all names in the files become.
        dtype: as it was asked for.
        special_dtypes: the same by name of a tensor, before the general one.
    """

    model: nn.Module
    files: CheckpointFiles
    names: StoredNames
    dtype: str | torch.dtype
    special_dtypes: Mapping[str, Any]

    def fingerprint(self) -> str:
        """Digest of the configuration, of the names in the files, and of what the model has for them; values take no part."""
        live = [
            (name, tuple(tensor.shape), str(tensor.dtype))
            for name, tensor in live_tensors(self.model).items()
        ]
        config = json.dumps(self.files.config, sort_keys=True, default=str)
        return sha256(repr((sorted(self.names.goals), sorted(live), config)).encode()).hexdigest()

    def weights_of(self, owns: Callable[[str], bool], device: torch.device) -> StageWeights:
        """The tensors of a stage, held against the headers of the files that have them.

        Args:
            owns: whether a tensor is the stage's, by its name.
            device: where they go.

        Raises:
            CheckpointError: whatever does not fit, all at once. Fields: ``file``, ``reason``, ``findings``.

        Guarantee: no file is opened in which the stage has nothing, where an index says what is in them.
        """
        regions = find_regions(self.model, {}, Placement(device, device, False), frozenset())
        places = [place for place in regions.places if owns(place.name)]
        needed = self.names.needed(place.name for place in places)
        opened, rows = _open(self.files, needed)
        recipes = find_recipes([row for row in rows if row.name in needed], self.model, named=self.names)
        with torch.inference_mode(False), torch.no_grad():
            apart = settle_doubled(recipes, opened)
            judged = judge(
                places, recipes, apart.ties, cast_rule(self.dtype, self.special_dtypes), Leniency()
            )
            require_nothing((*apart.findings, *judged.findings), self.files.name, judged.advice)
            initial = initial_values(self.model, [target.name for target in judged.absent])
            require_nothing(initial.findings, self.files.name)
        made = {name: value.to(device) for name, value in initial.values.items()}
        return StageWeights(judged, opened, made, device)


@dataclass(frozen=True, slots=True, eq=False)
class StageWeights:
    """How the tensors of one stage come out of the files.

    Args:
        judged: them, beside what the files have.
        opened: the files that hold them.
        made: by name, values of those that no file has.
        device: where they go.
    """

    judged: Judged
    opened: OpenFiles
    made: Mapping[str, Tensor]
    device: torch.device

    @property
    def nbytes(self) -> int:
        """Bytes that they take in memory, each once."""
        return sum(target.wanted.nbytes for target in self.judged.targets if target.wanted is not None)

    def read_into(self, model: nn.Module, progress: Callable[[int, int], object] | None) -> int:
        """Reads them to their device and puts them into the model; returns the bytes read.

        Raises:
            OffloadError: a file that cannot be read, or a number that the dtype cannot hold. Fields: ``name``.

        Guarantee: what is read passes no memory of the host but two slots, and none on its way to the cpu.
        """
        total_bytes, done_bytes = self.nbytes, 0

        def advance(more_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += more_bytes
            if progress is not None:
                progress(done_bytes, total_bytes)

        with torch.inference_mode(False), torch.no_grad():
            self.opened.require_same()
            residents = make_residents(
                self.judged.targets,
                self.opened,
                self.made,
                offload_buffers=False,
                copies=lambda _wanted: True,
                advance=advance,
            )
            commit(model, residents.values, None, None, {})
            for module in model.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None and buffer.device != self.device:
                        module._buffers[name] = buffer.to(self.device)
        return residents.read_bytes


def open_whole(
    checkpoint: str | os.PathLike[str],
    dtype: str | torch.dtype,
    special_dtypes: Mapping[str, Any],
    attention: str | None,
) -> WholeModel:
    """A checkpoint's model on meta, and the names in its files.

    Raises:
        CheckpointError: files that are missing, malformed or hostile, or no model that can be made. Fields: ``file``, ``reason``.

    Guarantee: where an index says what is in files of weights, none of them is opened.
    """
    files = find_weights(checkpoint)
    names, rows = _names(files)
    if attention is not None:  # some classes choose their modules by it
        files = replace(files, config={**files.config, "attn_implementation": attention})
    model = build_skeleton(files, rows, wanted_dtype(dtype))
    return WholeModel(model, files, read_names(names, model), dtype, special_dtypes)


def _names(files: CheckpointFiles) -> tuple[list[str], Sequence[StoredTensor]]:
    """Names of all tensors, and the tensors themselves where files had to be opened for it."""
    if files.index is not None:
        return [name for name, _ in files.index.tensors()], ()
    rows = stored_tensors(open_headers(files)[1], files.name)
    return [row.name for row in rows], rows


def _open(files: CheckpointFiles, needed: frozenset[str]) -> tuple[OpenFiles, list[StoredTensor]]:
    """The files that some tensors lie in, and what their headers say."""
    if files.index is not None:
        numbers = sorted({number for name, number in files.index.tensors() if name in needed})
        files = replace(files, weights=tuple(files.weights[number] for number in numbers), index=None)
    opened, headers = open_headers(files)
    return opened, stored_tensors(headers, files.name)
