"""Weights that rest in safetensors files, as rows of accelerate's index name them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from planner.checkpoint.files import Headers, StoredFile, most_handles
from planner.checkpoint.reading import printable
from planner.dispatching.tensors.slots import Slot
from planner.loading.open_files import OpenFiles
from planner.loading.source import stored_tensors
from planner.loading.stored import StoredTensor
from planner.loading.weights import FileWeights, WantedTensor

__all__ = ["file_weights_of_rows"]


def file_weights_of_rows(slots: Mapping[str, Slot], rows: Mapping[str, Any]) -> FileWeights | None:
    """The weights of slots, resting in the safetensors files that rows name.

    Args:
        slots: by full name; what lies in them says dtype and shape.
        rows: by full name, ``safetensors_file`` and ``weight_name``, which is the name itself where it is missing.

    Returns:
        None where a row names no safetensors file, or a tensor of another shape.

    Raises:
        CheckpointError: a file that cannot be opened, or is malformed. Fields: ``file``, ``reason``.
    """
    if not all(_names_a_file(rows[name]) for name in slots):
        return None
    paths = list(dict.fromkeys(os.fspath(rows[name]["safetensors_file"]) for name in slots))
    files, stored = _opened(paths)
    wanted: dict[str, WantedTensor] = {}
    first: dict[int, str] = {}
    for name, slot in slots.items():
        row, tensor = rows[name], slot.read()
        found = stored.get((os.fspath(row["safetensors_file"]), row.get("weight_name", name)))
        if found is None or found.shape != tuple(tensor.shape):
            return None
        # Tied names have one value.
        known_as = first.setdefault(id(tensor), name)
        wanted[name] = WantedTensor(known_as, found, tensor.dtype, not slot.is_buffer)
    return FileWeights(OpenFiles(files), wanted, lists_files=True)


def _names_a_file(row: Any) -> bool:
    return isinstance(row, Mapping) and row.get("safetensors_file") is not None


def _opened(paths: Sequence[str]) -> tuple[list[StoredFile], dict[tuple[str, str], StoredTensor]]:
    """The files, and what is in them by path and name."""
    files: list[StoredFile] = []
    stored: dict[tuple[str, str], StoredTensor] = {}
    most = most_handles()
    for number, path in enumerate(paths):
        file = StoredFile.open(path, printable(path))
        files.append(file)
        for row in stored_tensors(Headers.of_files([file], None), file.shown):
            stored[path, row.name] = row._replace(file=number)
        if number >= most:
            file.map()
            file.close()
    return files, stored
