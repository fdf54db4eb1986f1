"""The part of a pickled checkpoint that rests on disk, as files that can be read tensor by tensor."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from planner.arguments import path_text
from planner.checkpoint.files import StoredFile
from planner.checkpoint.reading import printable
from planner.compat.weight_source import WeightSource
from planner.dispatching.offload.weight_files import INDEX, offload_weight, save_offload_index
from planner.errors import InvalidInputError, OffloadError
from planner.loading.load import PreparedLoad
from planner.loading.open_files import OpenFiles
from planner.loading.stored import StoredTensor
from planner.loading.weights import FileWeights, WantedTensor, as_slot_value, is_in_place, made
from planner.names import listed
from planner.units import format_bytes

__all__ = ["dat_files", "pickled_part"]


@contextmanager
def pickled_part(
    prepared: PreparedLoad,
    source: WeightSource,
    offload_folder: str | os.PathLike[str] | None,
    *,
    may_hold: bool = False,
) -> Iterator[FileWeights | None]:
    """Where the part on disk and on the CPU of a pickled checkpoint rests, which cannot be its files; None for others.

    Args:
        may_hold: without a folder, the part on disk is kept in memory.

    Guarantee: when the block raises, the folder is as it was, unless the model has been written to by then and needs it.
    """
    weights = prepared.residents.weights
    if not source.is_pickled or weights is None:
        yield None
        return
    places = {place.name: place for target in prepared.judged.targets for place in target.places}
    is_held = may_hold and offload_folder is None
    on_disk = {
        name: wanted
        for name, wanted in weights.wanted.items()
        if places[name].placement.storage_device is None and not is_held
    }
    held = _in_memory(weights, [name for name in weights if name not in on_disk])
    if not on_disk:
        yield FileWeights(source.files, {}, held)
        return
    if offload_folder is None:
        raise InvalidInputError(
            f"{listed(map(repr, on_disk))} of this pickled checkpoint rest on disk, where they are written to: pass along an "
            "`offload_folder` (safetensors files need none)"
        )
    before = [(places[name].slot, places[name].slot.read()) for name in on_disk]

    def is_needed() -> bool:
        return any(slot.read() is not tensor for slot, tensor in before)

    folder = path_text(offload_folder, "offload_folder")
    with dat_files(folder, source.files, on_disk, is_needed) as written:
        yield FileWeights(written.files, written.wanted, held)


def _in_memory(weights: FileWeights, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Weights in memory of their own; tied names have one."""
    held: dict[str, torch.Tensor] = {}
    once: dict[str, torch.Tensor] = {}
    for name in names:
        wanted = weights.wanted.get(name)
        if wanted is None:
            held[name] = weights[name]
            continue
        if wanted.name not in once:
            value = made(weights.files, wanted)
            once[wanted.name] = as_slot_value(
                value.clone() if is_in_place(weights.files, wanted) else value, wanted
            )
        held[name] = once[wanted.name]
    return held


@contextmanager
def dat_files(
    folder: str, files: OpenFiles, wanted: Mapping[str, WantedTensor], is_needed: Callable[[], bool]
) -> Iterator[FileWeights]:
    """Writes tensors of open files to ``<name>.dat``, as accelerate names and lays them out, with an ``index.json``.

    Args:
        folder: made if it is not there.
        files: the files that they come from.
        wanted: by live name, what is written.
        is_needed: whether the files have to stay, although the block has raised.

    Returns:
        While open, the same weights, resting in these files.

    Raises:
        InvalidInputError: a folder that cannot be made or is too full.
        OffloadError: one that cannot be written to, or a number that the wanted dtype cannot hold. Fields: ``name``.

    Guarantee: when it raises, or the block and they are not needed, the folder is as it was. Another model that is written there later does not change these
        weights: its files take the names, and these stay open. One tensor at a time is in memory.
    """
    with ExitStack() as undo:
        _make_room(folder, sum(row.nbytes for row in wanted.values()), undo)
        # Each written down before it is done: an interrupt between the two leaves nothing behind.
        unfinished = os.path.join(folder, f".{secrets.token_hex(8)}")
        undo.callback(shutil.rmtree, unfinished, ignore_errors=True)
        try:
            os.mkdir(unfinished)
        except OSError as error:
            raise OffloadError(f"cannot write to {folder}: {error}", name=next(iter(wanted))) from error
        index: dict[str, Any] = {}
        for name, row in wanted.items():
            offload_weight(made(files, row), name, unfinished, index)
        stored = [_placed(folder, unfinished, f"{name}.dat", undo) for name in wanted]
        _keep(folder, unfinished, INDEX, undo)
        save_offload_index(index, folder)
        rows = {
            name: row._replace(recipe=StoredTensor(name, number, 0, row.nbytes, row.dtype, row.recipe.shape))
            for number, (name, row) in enumerate(wanted.items())
        }
        is_done = False
        try:
            yield FileWeights(OpenFiles(stored), rows)
            is_done = True
        finally:
            if is_done or is_needed():
                undo.pop_all()
                shutil.rmtree(unfinished, ignore_errors=True)


def _placed(folder: str, unfinished: str, file: str, undo: ExitStack) -> StoredFile:
    """Gives a file the name that it is to have, and opens it."""
    path = os.path.join(folder, file)
    _keep(folder, unfinished, file, undo)
    os.replace(os.path.join(unfinished, file), path)
    return StoredFile.open(path, printable(path))


def _keep(folder: str, unfinished: str, file: str, undo: ExitStack) -> None:
    """Keeps what a name stands for now, to be put back."""
    path, before = os.path.join(folder, file), os.path.join(unfinished, f"{file}.before")
    if os.path.lexists(path):
        try:
            os.link(path, before, follow_symlinks=False)
        except OSError:  # a file system without hard links
            shutil.copy2(path, before, follow_symlinks=False)
        undo.callback(os.replace, before, path)
    else:
        undo.callback(Path(path).unlink, missing_ok=True)


def _remove_if_empty(folder: str) -> None:
    with suppress(OSError):
        os.rmdir(folder)


def _make_room(folder: str, wanted_bytes: int, undo: ExitStack) -> None:
    """Makes a folder, if it is not there, and looks whether there is room."""
    try:
        if not os.path.isdir(folder):
            undo.callback(_remove_if_empty, folder)
            os.makedirs(folder)
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        raise InvalidInputError(f"offload_folder cannot be used: {error}") from error
    if free_bytes < wanted_bytes:
        raise InvalidInputError(
            f"offload_folder {folder} has {format_bytes(free_bytes)} free; the part on disk takes {format_bytes(wanted_bytes)}"
        )
