"""Checkpoints that tests write: true headers, and holes where the weights would be."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Tensors = Mapping[str, tuple[str, list[int], int]]
"""Element type, shape and bytes by name."""


def header_of(tensors: Tensors) -> tuple[bytes, int]:
    """A header, and the length of the data behind it."""
    rows: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        rows[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return json.dumps(rows).encode(), end


def write_raw(path: Path, header: bytes, data_bytes: int, *, said: int | None = None) -> Path:
    """A file with any header, any length in front of it, and a hole behind it."""
    path.write_bytes(struct.pack("<Q", len(header) if said is None else said) + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + data_bytes)
    return path


def write_tensors(path: Path, tensors: Tensors) -> Path:
    """A file with these tensors."""
    header, end = header_of(tensors)
    return write_raw(path, header, end)


def write_index(folder: Path, weight_map: Any) -> Path:
    """An index that says this."""
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path
