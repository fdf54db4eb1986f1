"""Checkpoint files with values, made by hand, for tests that load them; imports no library of models."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["write_file"]

TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}


def write_file(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    gap: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A safetensors file with tensors in the order given, the first `gap` bytes behind where its type would have it."""
    rows: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        rows[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    header = json.dumps(rows).encode()
    header += b" " * (-len(header) % 8 + gap)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for tensor in tensors.values():
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return path
