"""Plans from files on disk: which files, what is read of them, and what comes out."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

import planner


def write_file(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> Path:
    """A safetensors file with a true header and a hole for data. Tensors: element type, shape, bytes by name."""
    header, end = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + end)
    return path


def test_numbered_blocks_go_by_value_and_heads_last(tmp_path: Path) -> None:
    names = ["lm_head.weight", *(f"model.layers.{n}.w" for n in (10, 2, 1)), "model.embed_tokens.weight"]
    write_file(tmp_path / "model.safetensors", {name: ("F16", [10], 20) for name in names})
    plan = planner.plan(
        tmp_path, max_memory={0: 40, 1: 40, 2: 40}, strategy={"type": "auto", "fill": "in_order"}
    )
    assert plan.source.kind == "checkpoint"
    assert plan.source.total_bytes == 100
    assert list(plan.device_map.items()) == [
        ("model.embed_tokens", 0),
        ("model.layers.1", 0),
        ("model.layers.2", 1),
        ("model.layers.10", 1),
        ("lm_head", 2),
    ]


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    write_file(tmp_path / "a.safetensors", {"x.w": ("F32", [1], 4)})
    index = {"weight_map": {"x.w": "a.safetensors", "y.w": "b.safetensors", "z.w": "c.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        planner.CheckpointError, match=r"2 of 3 files are missing: b.safetensors, c.safetensors"
    ):
        planner.plan(tmp_path, max_memory={0: 100})
