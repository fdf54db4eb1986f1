"""The files that accelerate's functions load from, each read as what it is, whatever its name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from planner.arguments import path_text
from planner.checkpoint.files import CheckpointFiles, Headers, StoredFile, files_at, resolved
from planner.checkpoint.place import Place, locate
from planner.checkpoint.reading import fault, printable, read_json_object, read_regular
from planner.compat.in_order import put_in_order
from planner.compat.pickled import read_pickled
from planner.loading.open_files import OpenFiles
from planner.loading.source import stored_tensors
from planner.loading.stored import StoredTensor
from planner.names import is_text, listed

__all__ = ["PickledFiles", "WeightSource", "open_weights"]

_PICKLE: Final = "pytorch_model.bin"
_INDEX_END: Final = ".index.json"
_SAFETENSORS_INDEX_END: Final = ".safetensors.index.json"
_PICKLED_STARTS: Final = (b"PK", b"\x80")


class PickledFiles(OpenFiles):
    """Files of which some are pickled: those are written over in place, so nothing may stay a view of them."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightSource:
    """What is loaded from.

    Args:
        name: the path as it was given.
        files: the open files.
        rows: their tensors.
        others: names of what else pickles hold.
    """

    name: str
    files: OpenFiles
    rows: Sequence[StoredTensor]
    others: tuple[str, ...] = ()

    @property
    def is_pickled(self) -> bool:
        """Whether a file is a pickle."""
        return isinstance(self.files, PickledFiles)


def open_weights(checkpoint: str | os.PathLike[str]) -> WeightSource:
    """Opens a checkpoint.

    Args:
        checkpoint: a safetensors file, a pickled state dict, an index, a folder with one of these, or a name in the hub's cache.
            Of a folder with both, the safetensors files count.

    Raises:
        InvalidInputError: no path.
        CheckpointError: nothing of that there; files that are missing, malformed or hostile, or lie elsewhere. Fields: ``file``,
            ``reason``.
    """
    place = locate(path_text(checkpoint, "checkpoint"))
    files = _safetensors_in(place)
    if files is not None:
        opened, headers = files.open_headers()
        return WeightSource(files.name, OpenFiles(opened), stored_tensors(headers, files.name))
    paths, listed_in = _files_of(place)
    return _opened(place.name, paths, listed_in)


def _safetensors_in(place: Place) -> CheckpointFiles | None:
    """The safetensors files of a place, by the names that they have everywhere."""
    names = place.names() if place.file is None else [place.file]
    if not any(name.endswith((".safetensors", _SAFETENSORS_INDEX_END)) for name in names):
        return None
    if place.file is not None and not place.file.endswith(_INDEX_END) and not _is_safetensors(place.path):
        return None
    files = files_at(place)
    return files if files.weights else None


def _is_safetensors(path: str) -> bool:
    return not read_regular(path, 2).startswith(_PICKLED_STARTS)


def _files_of(place: Place) -> tuple[tuple[str, ...], Mapping[str, str] | None]:
    """Paths of files, and the file of each tensor where an index says it."""
    if place.file is not None:
        is_index = place.file.lower().endswith(".json")
        return _listed_files(place.path, place.folder) if is_index else ((place.path,), None)
    names = place.names()
    indices = [name for name in names if name.endswith(_INDEX_END)]
    if _PICKLE in names:
        return resolved(place.folder, [_PICKLE], place.folder), None
    if len(indices) > 1:
        raise fault(place.folder, f"holds several indices, name one of them: {listed(indices, most=20)}")
    if not indices:
        raise fault(
            place.folder,
            f"holds neither safetensors files, nor {_PICKLE}, nor an index of files (*{_INDEX_END})",
        )
    (path,) = resolved(place.folder, indices, place.folder)
    return _listed_files(path, place.folder)


def _listed_files(path: str, folder: str) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """What an index lists: a mapping from tensors to files, or one with that as its ``weight_map``."""
    content = read_json_object(path)
    rows = content.get("weight_map", content)
    if not (isinstance(rows, dict) and rows and all(map(is_text, rows.values()))):
        raise fault(path, "must map names of tensors to names of files, and does not")
    names = sorted(set(rows.values()))
    paths = resolved(folder, names, path)
    by_name = dict(zip(names, paths, strict=True))
    return paths, {tensor: by_name[file] for tensor, file in rows.items()}


def _opened(name: str, paths: Sequence[str], listed_in: Mapping[str, str] | None) -> WeightSource:
    files = [StoredFile.open(path, printable(path)) for path in paths]
    strides: dict[StoredTensor, tuple[int, ...]] = {}
    others: list[str] = []
    rows: dict[str, StoredTensor] = {}
    is_pickled = False
    for number, file in enumerate(files):
        if _is_pickle(file):
            is_pickled = True
            found = list(_pickled_rows(file, number, strides, others))
        else:
            headers = Headers.of_files([file], None)
            found = [row._replace(file=number) for row in stored_tensors(headers, file.shown)]
        for row in found:
            where = None if listed_in is None else listed_in.get(row.name)
            if where is not None and where != paths[number]:
                continue
            if row.name in rows:
                raise fault(name, f"has '{row.name}' in two files, and no index that says which one counts")
            rows[row.name] = row
    _require_listed(name, rows, listed_in)
    if not is_pickled:
        return WeightSource(name, OpenFiles(files), list(rows.values()), tuple(others))
    apart = {row: strides[row] for row in rows.values() if row in strides}
    in_order = put_in_order(name, files, apart)
    return WeightSource(
        name, PickledFiles(files), [in_order.get(row, row) for row in rows.values()], tuple(others)
    )


def _require_listed(name: str, rows: Mapping[str, StoredTensor], listed_in: Mapping[str, str] | None) -> None:
    absent = [] if listed_in is None else [tensor for tensor in listed_in if tensor not in rows]
    if absent:
        raise fault(name, f"lists tensors that their files do not have: {listed(absent, most=10)}")


def _is_pickle(file: StoredFile) -> bool:
    """Whether a file is a pickle or a zip file. A safetensors file may begin as one, with the length of its header, but has that
    header's brace where neither can have one."""
    start = bytes(memoryview(file.map())[:9]) if file.size_bytes else b""
    return start.startswith(_PICKLED_STARTS) and start[8:] != b"{"


def _pickled_rows(
    file: StoredFile, number: int, strides: dict[StoredTensor, tuple[int, ...]], others: list[str]
) -> Iterator[StoredTensor]:
    content = memoryview(file.map())
    found = read_pickled(lambda begin, end: bytes(content[begin:end]), file.size_bytes, file.shown)
    others.extend(found.others)
    for tensor in found.tensors:
        row = StoredTensor(tensor.name, number, tensor.begin, tensor.end, tensor.dtype, tensor.shape)
        if tensor.strides is not None:
            strides[row] = tensor.strides
        yield row
