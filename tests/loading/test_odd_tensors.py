"""Tensors that are not like most: of types that are packed, at odd offsets, of classes that keep more than bytes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import CheckpointError
from tensor_files import write_file

PLACES: tuple[dict[str, Any], ...] = ({"": "cpu"}, {"": "disk"})


def packed_file(folder: Path, shape: list[int], data: bytes) -> Path:
    """A file with one tensor of four-bit numbers."""
    rows = {"weight": {"dtype": "F4", "shape": shape, "data_offsets": [0, len(data)]}}
    header = json.dumps(rows).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return folder


class Packed(nn.Module):
    """Holds four-bit numbers, two in a byte, as torch counts them."""

    def __init__(self, rows: int, pairs: int) -> None:
        super().__init__()
        values = torch.empty(rows, pairs, dtype=torch.float4_e2m1fn_x2, device="meta")
        self.weight = nn.Parameter(values, requires_grad=False)


@pytest.mark.parametrize("placed", [None, *PLACES])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_numbers_of_four_bits_are_loaded_in_pairs(placed: Any, dtype: str, tmp_path: Path) -> None:
    data = bytes(range(6))
    model = planner.load(packed_file(tmp_path, [2, 6], data), Packed(2, 3), placed, dtype=dtype)
    found = planner.state_dict(model)["weight"]
    assert found.dtype == torch.float4_e2m1fn_x2 and found.shape == (2, 3)
    assert bytes(found.view(torch.uint8).flatten().tolist()) == data


def test_numbers_of_four_bits_that_are_no_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pairs"):
        planner.load(packed_file(tmp_path, [2, 3], bytes(3)), Packed(2, 2), {"": "cpu"})


@pytest.mark.parametrize("placed", PLACES)
def test_the_report_calls_what_cannot_be_looked_at_in_its_place_a_copy(placed: Any, tmp_path: Path) -> None:
    values = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}
    for gap, way in ((0, "view"), (1, "copy")):
        folder = tmp_path / str(gap)
        folder.mkdir()
        write_file(folder / "model.safetensors", values, gap=gap)
        model = planner.load(folder, nn.Linear(3, 2, device="meta"), placed)
        assert {row.way for row in planner.load_report(model).tensors} == {way}
        assert planner.state_dict(model)["weight"].equal(values["weight"])


class Quantised(nn.Parameter):
    """What a quantiser makes of a weight."""


@pytest.mark.parametrize("stored", ["weight", "weight.packed"])
def test_a_class_of_a_quantiser_is_named_and_nothing_that_follows_from_it(
    stored: str, tmp_path: Path
) -> None:
    """Also where the files hold it in parts: all names are then others, and that is not what is wrong."""
    write_file(
        tmp_path / "model.safetensors",
        {f"{number}.{name}": torch.ones(2, 2) for number in range(5) for name in (stored, "absmax")},
    )
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(5)))
    for layer in model:
        layer.weight = Quantised(torch.zeros(2, 2))
    with pytest.raises(CheckpointError) as caught:
        planner.load(tmp_path, model, {"": "cpu"})
    (finding,) = caught.value.findings
    assert "Quantised" in finding and "2 more" in finding and "from_pretrained" in finding
    assert "absmax" not in str(caught.value) and "no file has" not in str(caught.value)
    assert all(not layer.weight.any() for layer in model)
