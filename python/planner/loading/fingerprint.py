"""What tensors are made from, in a few characters: other files, names, recipes or versions give others."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from importlib.metadata import version
from typing import Final

import torch

from planner.loading.open_files import OpenFiles
from planner.loading.recipe import Computed, ConverterRun, Part, Pieces, Recipe
from planner.loading.stored import StoredTensor
from planner.loading.weights import WantedTensor

__all__ = ["fingerprint"]

# Raised when the same recipe comes to give other bytes, or the file's layout changes.
_FORMAT: Final = 1
_CHARACTERS: Final = 32
_DISTRIBUTION: Final = "device-map-planner"


def fingerprint(files: OpenFiles, wanted: Iterable[WantedTensor]) -> str:
    """A name for what tensors become, which fits as a file's name.

    Args:
        files: the files that they are made from, each known by device, inode, size and time.
        wanted: the tensors in the order in which they are written.
    """
    digest = hashlib.sha256(_text([_FORMAT, version(_DISTRIBUTION), torch.__version__]))
    for row in wanted:
        digest.update(_text([row.name, str(row.dtype), _recipe(files, row.recipe)]))
    return digest.hexdigest()[:_CHARACTERS]


def _recipe(files: OpenFiles, recipe: Recipe) -> list[object]:
    match recipe:
        case StoredTensor():
            return ["stored", _stored(files, recipe)]
        case Part(source, begin, end, shape):
            return ["part", _stored(files, source), begin, end, shape]
        case Pieces(_, shape, pieces):
            return ["pieces", shape, [[_stored(files, row), at] for row, at in pieces]]
        case Computed():
            return ["computed", recipe.name, *_conversion(files, recipe.conversion)]


def _stored(files: OpenFiles, row: StoredTensor) -> list[object]:
    return [
        files.files[row.file].identity,
        row.name,
        row.begin,
        row.end,
        str(row.dtype),
        row.shape,
    ]


def _conversion(files: OpenFiles, conversion: ConverterRun) -> list[object]:
    converter, config = conversion.converter, conversion.model.config
    as_dict = getattr(config, "to_dict", dict)
    said = {key: value for key, value in as_dict().items() if key != "_name_or_path"}
    steps = getattr(converter, "operations", ())
    # Whoever has one has imported it. What does not need it is the same in a process without it.
    transformers = sys.modules["transformers"]
    return [
        transformers.__version__,
        conversion.name,
        [[pattern, _stored(files, row)] for pattern, row in conversion.sources],
        [type(converter).__qualname__, getattr(converter, "target_patterns", ())],
        [[type(step).__qualname__, _plain(step)] for step in steps],
        sorted(conversion.model.shapes.items()),
        said,
    ]


def _plain(step: object) -> dict[str, object]:
    """Attributes of a converter's operation that are numbers or words; an object's text may say where it lies in memory."""
    return {name: value for name, value in vars(step).items() if isinstance(value, str | int | float)}


def _text(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()
