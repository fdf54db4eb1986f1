"""What lies in a folder of safetensors files, read in Python alone, and live tensors made of it by their recipes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from planner.loading.recipe import ConverterRun
from planner.loading.recipes import Computed, Part, Pieces, Recipe
from planner.loading.stored import TORCH_DTYPES, StoredTensor

__all__ = ["made", "rows_of"]


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def rows_of(folder: Path) -> list[StoredTensor]:
    """The rows of all headers."""
    rows = []
    for number, path in enumerate(files_of(folder)):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        for name, said in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in said["data_offsets"])
                dtype = TORCH_DTYPES[said["dtype"]]
                rows.append(StoredTensor(name, number, begin, end, dtype, tuple(said["shape"])))
    return rows


def made(folder: Path, recipes: Mapping[str, Recipe]) -> dict[str, Tensor]:
    """The values that recipes give."""
    contents = [path.read_bytes() for path in files_of(folder)]

    def taken(file: int, begin: int, end: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        data = bytearray(contents[file][begin:end])
        return torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)

    def read(row: StoredTensor) -> Tensor:
        return taken(row.file, row.begin, row.end, row.dtype, row.shape)

    done: dict[ConverterRun, dict[str, Tensor]] = {}
    found = {}
    for name, recipe in recipes.items():
        match recipe:
            case StoredTensor():
                found[name] = read(recipe)
            case Part():
                source = recipe.source
                found[name] = taken(source.file, recipe.begin, recipe.end, source.dtype, recipe.shape)
            case Pieces():
                data = bytearray(recipe.nbytes)
                for row, at in recipe.pieces:
                    data[at : at + row.nbytes] = contents[row.file][row.begin : row.end]
                found[name] = torch.frombuffer(data, dtype=recipe.dtype).view(recipe.shape)
            case Computed():
                found[name] = recipe.compute(read, done)
    return found
