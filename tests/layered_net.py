"""A small network of equal layers with its checkpoint, and whether a model is as it was; imports no library of models."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import CheckpointError, PlannerError
from tensor_files import write_file

__all__ = [
    "ALTERNATING",
    "EVERY_WAY",
    "LAYERS",
    "MAPS",
    "READS",
    "WIDTH",
    "Before",
    "Net",
    "X",
    "empty",
    "expected",
    "findings_of",
    "is_right",
    "layout_of",
    "part_of",
    "refused",
    "state",
    "written",
]

WIDTH = 16
LAYERS = 6
X = torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)
ALTERNATING: dict[str, Any] = {
    "embed": "cpu",
    "norm": "cpu",
    "head": "cpu",
    **{f"layers.{number}": ("disk", "cpu")[number % 2] for number in range(LAYERS)},
}
MAPS: dict[str, dict[str, Any]] = {"disk": {"": "disk"}, "alternating": ALTERNATING}
READS = ("auto", "cached", "direct")
EVERY_WAY = tuple(itertools.product(MAPS, READS))


class Layer(nn.Module):
    """Two weights and a buffer that files hold."""

    scale: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width, bias=False)
        self.register_buffer("scale", torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x))) * self.scale


class Net(nn.Module):
    """Layers one behind the other; one buffer counts in whole numbers, one is in no file."""

    steps: torch.Tensor
    positions: torch.Tensor

    def __init__(self, width: int = WIDTH, layers: int = LAYERS) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, width)
        self.norm.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.norm.register_buffer("positions", torch.arange(float(width)), persistent=False)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x) + self.norm.positions * self.norm.steps)  # type: ignore[no-any-return]


def state(width: int = WIDTH, layers: int = LAYERS, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random weights by name."""
    torch.manual_seed(seed)
    values = {
        name: torch.randn(tensor.shape) * 0.2 for name, tensor in Net(width, layers).state_dict().items()
    }
    return values | {"norm.steps": torch.tensor(2)}


def written(folder: Path, tensors: Mapping[str, torch.Tensor] | None = None, files: int = 3) -> Path:
    """The checkpoint, its tensors in turn in files `0.safetensors`, `1.safetensors`, …, and an index."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = state() if tensors is None else tensors
    size = -(-len(tensors) // files)
    names = list(tensors)
    weight_map = {name: f"{index // size}.safetensors" for index, name in enumerate(names)}
    for file in dict.fromkeys(weight_map.values()):
        write_file(folder / file, {name: tensors[name] for name in names if weight_map[name] == file})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def empty(width: int = WIDTH, layers: int = LAYERS) -> Net:
    """On meta but for its buffers."""
    model = Net(width, layers)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)
    return model


@functools.cache
@torch.no_grad()
def expected(seed: int = 1) -> torch.Tensor:
    """What the undispatched network with this seed's weights gives."""
    model = Net()
    model.load_state_dict(state(seed=seed))
    answer: torch.Tensor = model(X)
    return answer


def layout_of(name: str) -> dict[str, Any]:
    return {"": "cpu"} if name == "cpu" else MAPS[name]


@torch.no_grad()
def is_right(model: nn.Module, times: int = 3) -> bool:
    """Whether each of several forwards gives what the undispatched network gives."""
    return all(model(X).equal(expected()) for _ in range(times))


class Before:
    """What a model was: its tensors by identity and values, what stands in its modules, and nothing attached."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors = self.slots()
        self.values = {key: None if t.is_meta else t.detach().clone() for key, t in self.tensors.items()}
        self.attributes = {name: set(vars(module)) for name, module in model.named_modules()}

    def slots(self) -> dict[tuple[str, str], torch.Tensor]:
        return {
            (name, local): tensor
            for name, module in self.model.named_modules()
            for local, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None
        }

    def difference(self) -> str:
        """In words; empty where it is as it was."""
        now = self.slots()
        if now.keys() != self.tensors.keys():
            return f"slots: {now.keys() ^ self.tensors.keys()}"
        for key, tensor in self.tensors.items():
            value = self.values[key]
            if now[key] is not tensor:
                return f"{key} is another tensor"
            if tensor.is_meta != (value is None) or (value is not None and not tensor.equal(value)):
                return f"{key} has other values"
        for name, module in self.model.named_modules():
            if added := set(vars(module)) ^ self.attributes[name]:
                return f"{name or 'the model'}: {sorted(added)}"
        return ""


def refused(
    checkpoint: Path,
    model: nn.Module,
    placed: Any,
    error: type[PlannerError] = CheckpointError,
    **settings: Any,
) -> PlannerError:
    """The error, which leaves the model as it was."""
    before = Before(model)
    with pytest.raises(error) as caught:
        planner.load(checkpoint, model, placed, **settings)
    assert before.difference() == ""
    if isinstance(caught.value, CheckpointError):
        assert caught.value.reason and caught.value.file
    return caught.value


def findings_of(error: PlannerError) -> str:
    return "\n".join(str(finding) for finding in error.findings)


def part_of(folder: Path, number: str) -> dict[str, torch.Tensor]:
    rows = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return {name: value for name, value in state().items() if rows[name] == f"{number}.safetensors"}
