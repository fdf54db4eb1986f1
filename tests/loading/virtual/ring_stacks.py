"""Small stacks of layers in one file, loaded onto virtual accelerators with room for some of them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import planner
from rig import Accelerators
from tensor_files import write_file

WIDTH = 256
LAYERS = 8


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(x))


class Stack(nn.Module):
    """Layers one after the other; the caller may leave early, or take other ways through them."""

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.way: Sequence[int] = range(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in self.way:
            x = self.layers[number](x)
        return x


def stack(layers: int = LAYERS) -> Stack:
    torch.manual_seed(0)
    return Stack(layers).requires_grad_(False).eval()


LAYER_BYTES = sum(parameter.nbytes for parameter in Layer().parameters())


def layout(rest: str, layers: int = LAYERS) -> dict[str, Any]:
    """The first layer stays on accelerator 0, the second one on 1, and the others rest."""
    return {f"layers.{number}": number if number < 2 else rest for number in range(layers)}


def some_rows() -> torch.Tensor:
    """What the stacks are called with."""
    torch.manual_seed(1)
    return torch.randn(3, WIDTH)


def written(folder: Path) -> Path:
    """A folder with the stack's weights."""
    write_file(folder / "model.safetensors", stack().state_dict())
    return folder


def loaded(folder: Path, rest: str = "disk", room_layers: float = 2.1, **settings: Any) -> Any:
    with torch.device("meta"):
        empty = Stack().requires_grad_(False)
    room = {0: int(room_layers * LAYER_BYTES)}
    return planner.load(folder, empty, layout(rest), staging_bytes=room, **settings).eval()


def settle(accelerators: Accelerators) -> None:
    """Lets go of earlier models, and waits for what was asked for when a load has returned."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name in ("planner-reader", "planner-paging"):
            thread.join(0.2)  # those of models that are gone end soon; others stay
    accelerators.synchronize()
