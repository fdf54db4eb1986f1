"""A small model, its checkpoint in files of every kind, and the maps that it is loaded by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import planner


class Small(nn.Module):
    """Parameters, saved buffers of two dtypes, and one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(3, 4)
        self.batchnorm = nn.BatchNorm1d(4)
        self.linear2 = nn.Linear(4, 5)
        self.register_buffer("scale", torch.ones(5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(self.batchnorm(self.linear1(x))) * self.scale


def trained() -> Small:
    """A model with values of its own everywhere."""
    model = Small()
    for _ in range(3):
        model(torch.randn(8, 3))
    return model.eval()


def on_meta() -> Small:
    """A skeleton; its buffer that no file holds is real, as `init_empty_weights` leaves it."""
    with planner.init_empty_weights(include_buffers=False):
        return Small().eval()


PARTS = ("linear1", "batchnorm", "linear2")
X = torch.randn(2, 3)


def one_file(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    save_file(dict(state), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def several_files(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    rows = {}
    for part in PARTS:
        file = f"{part}-of-3.safetensors"
        save_file(
            {name: value for name, value in state.items() if name.startswith(part)},
            folder / file,
            metadata={"format": "pt"},
        )
        rows |= {name: file for name in state if name.startswith(part)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": rows}))
    return folder


def one_pickle(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    torch.save(dict(state), folder / "weights.pt")
    return folder / "weights.pt"


def several_pickles(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    for part in PARTS:
        torch.save(
            {name: value for name, value in state.items() if name.startswith(part)}, folder / f"{part}.bin"
        )
    rows = {name: f"{name.partition('.')[0]}.bin" for name in state}
    (folder / "weights.index.json").write_text(json.dumps(rows))
    return folder


def old_pickle(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    torch.save(dict(state), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folder


WRITERS = {each.__name__: each for each in (one_file, several_files, one_pickle, several_pickles, old_pickle)}
SAFE = ("one_file", "several_files")
HALF = {"linear1": "cpu", "batchnorm": "disk", "linear2": "cpu"}
MAPS: dict[str, Any] = {
    "cpu": {"": "cpu"},
    "half": HALF,
    "disk": {"": "disk"},
    "one_tensor": {
        "linear1": "cpu",
        "batchnorm": "cpu",
        "scale": "cpu",
        "linear2.weight": "disk",
        "linear2.bias": "disk",
    },
    "auto": "auto",
    "balanced": "balanced",
    "sequential": "sequential",
    "none": None,
}


def covered(device_map: Any) -> Any:
    """With a device for the buffer that no file holds."""
    return (
        {**device_map, "scale": "cpu"}
        if isinstance(device_map, dict) and "" not in device_map
        else device_map
    )
