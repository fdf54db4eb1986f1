"""GGUF files that tests write: true headers, and holes where the weights would be; written from ggml's docs/gguf.md alone."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

# Number in files, elements and bytes of a block. Recorded from gguf 0.19.0, which wrote files with all types that the reader
# read as gguf's own reader does.
TYPES: Mapping[str, tuple[int, int, int]] = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q8_1": (9, 32, 40),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "Q8_K": (15, 256, 292),
    "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74),
    "IQ3_XXS": (18, 256, 98),
    "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110),
    "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136),
    "I8": (24, 1, 1),
    "I16": (25, 1, 2),
    "I32": (26, 1, 4),
    "I64": (27, 1, 8),
    "F64": (28, 1, 8),
    "IQ1_M": (29, 256, 56),
    "BF16": (30, 1, 2),
    "TQ1_0": (34, 256, 54),
    "TQ2_0": (35, 256, 66),
    "MXFP4": (39, 32, 17),
    "NVFP4": (40, 64, 36),
    "Q1_0": (41, 128, 18),
}

GgufTensors = Mapping[str, tuple[str, Sequence[int]]]
"""Type and shape by name, the innermost dimension first."""

Fact = bool | int | float | str | list[str]


def size_of(kind: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor."""
    _, elements, size = TYPES[kind]
    count = 1
    for length in shape:
        count *= length
    return count // elements * size


def total_of(tensors: GgufTensors) -> int:
    """Bytes of all tensors."""
    return sum(size_of(kind, shape) for kind, shape in tensors.values())


def text(value: str) -> bytes:
    """A text as the format has it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def fact(name: str, value: Fact) -> bytes:
    """A key with its value."""
    if isinstance(value, bool):
        return text(name) + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return text(name) + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return text(name) + struct.pack("<If", 6, value)
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    return text(name) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))


def header(tensors: GgufTensors, facts: Mapping[str, Fact], version: int = 3) -> tuple[bytes, int]:
    """A header, padded to where the data begins, and the length of the data."""
    content = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(facts))
    content += b"".join(fact(name, value) for name, value in facts.items())
    end = 0
    for name, (kind, shape) in tensors.items():
        content += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        content += struct.pack("<IQ", TYPES[kind][0], end)
        end += -(-size_of(kind, shape) // 32) * 32
    return content + bytes(-len(content) % 32), end


def write_gguf(
    path: Path, tensors: GgufTensors, facts: Mapping[str, Fact] | None = None, version: int = 3
) -> Path:
    """A file with these tensors."""
    content, data_bytes = header(
        tensors, {"general.architecture": "llama"} if facts is None else facts, version
    )
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(len(content) + data_bytes)
    return path
