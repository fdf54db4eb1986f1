"""The part of a pickled checkpoint that rests on disk, as files that can be read tensor by tensor."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from planner.checkpoint.files import StoredFile
from planner.checkpoint.reading import printable
from planner.dispatching.offload.weight_files import offload_weight, save_offload_index
from planner.errors import InvalidInputError, OffloadError
from planner.loading.open_files import OpenFiles
from planner.loading.stored import StoredTensor
from planner.loading.weights import FileWeights, WantedTensor, made
from planner.units import format_bytes

__all__ = ["write_dat_files"]


def write_dat_files(folder: str, files: OpenFiles, wanted: Mapping[str, WantedTensor]) -> FileWeights:
    """Writes tensors of open files to ``<name>.dat``, as accelerate names and lays them out, with an ``index.json``.

    Args:
        folder: made if it is not there.
        files: the files that they come from.
        wanted: by live name, what is written.

    Returns:
        The same weights, resting in these files.

    Raises:
        InvalidInputError: a folder that cannot be made or is too full.
        OffloadError: one that cannot be written to, or a number that the wanted dtype cannot hold. Fields: ``name``.

    Guarantee: when it raises, the folder is as it was. Another model that is written there later does not change these weights: its
        files take the names, and these stay open. One tensor at a time is in memory.
    """
    _require_room(folder, sum(row.nbytes for row in wanted.values()))
    index: dict[str, Any] = {}
    try:
        unfinished = tempfile.mkdtemp(prefix=".", dir=folder)
    except OSError as error:
        raise OffloadError(f"cannot write to {folder}: {error}", name=next(iter(wanted))) from error
    try:
        for name, row in wanted.items():
            offload_weight(made(files, row), name, unfinished, index)
        stored = list(_placed(folder, unfinished, wanted))
        save_offload_index(index, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    rows = {
        name: row._replace(recipe=StoredTensor(name, number, 0, row.nbytes, row.dtype, row.recipe.shape))
        for number, (name, row) in enumerate(wanted.items())
    }
    return FileWeights(OpenFiles(stored), rows)


def _placed(folder: str, unfinished: str, names: Iterable[str]) -> Iterator[StoredFile]:
    """Gives files the names that they are to have, and opens them."""
    for name in names:
        path = os.path.join(folder, f"{name}.dat")
        os.replace(os.path.join(unfinished, f"{name}.dat"), path)
        yield StoredFile.open(path, printable(path))


def _require_room(folder: str, wanted_bytes: int) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        raise InvalidInputError(f"offload_folder cannot be used: {error}") from error
    if free_bytes < wanted_bytes:
        raise InvalidInputError(
            f"offload_folder {folder} has {format_bytes(free_bytes)} free; the part on disk takes {format_bytes(wanted_bytes)}"
        )
