"""`verify` says what dispatching does, without dispatching: the same verdict, the same crossings, and nothing touched."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import PlannerError, Verification
from rig import Accelerators
from tiny_models import TINY

X = torch.linspace(-1, 1, 16).reshape(2, 8)


class Res(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x + self.fc(x)
        return made


class Summed(nn.Module):
    """The parent adds what its parts give."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.parts[0](x)
        for part in list(self.parts)[1:]:
            total = total + part(x)
        return total


class Skipping(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        for index, part in enumerate(parts):
            self.add_module(f"part_{index}", part)
        self.register_buffer("scale", torch.full((8,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x
        for part in self.children():
            x = part(x)
        return torch.cat([x, kept], -1)[..., :8] * self.scale


class Joined(nn.Module):
    """Uses a weight of a part that it never calls."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.other = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.other(x) @ torch.ones_like(next(self.part.parameters()))[:8, :8].T
        return made


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


def drawn(draw: random.Random, depth: int = 0) -> nn.Module:
    kinds: list[Callable[[], nn.Module]] = [lambda: nn.Linear(8, 8), Res, nn.ReLU]
    if depth < 2:
        few = draw.randrange(1, 4)
        kinds += [
            lambda: nn.Sequential(*(drawn(draw, depth + 1) for _ in range(few))),
            lambda: Summed(*(drawn(draw, depth + 1) for _ in range(few))),
            lambda: Skipping(*(drawn(draw, depth + 1) for _ in range(few))),
            lambda: Joined(nn.Linear(8, 8)),
        ]
    return draw.choice(kinds)()


def drawn_map(draw: random.Random, model: nn.Module) -> dict[str, Any]:
    """Devices for disjoint parts, now and then for a single tensor."""
    found: dict[str, Any] = {}

    def place(module: nn.Module, name: str) -> None:
        if not list(module.parameters()) and not list(module.buffers()):
            return
        own = [*module._parameters, *module._buffers]
        if (name and draw.random() < 0.4) or (not module._modules and draw.random() < 0.9):
            found[name] = draw.choice([0, 0, 1, 1, "cpu"])
            return
        for key in own:
            found[f"{name}.{key}" if name else key] = draw.choice([0, 1])
        for key, child in module.named_children():
            place(child, f"{name}.{key}" if name else key)

    place(model, "")
    return found


def really(model: nn.Module, device_map: dict[str, Any], inputs: Any) -> Verification:
    """What dispatching and running gives."""
    args = inputs if isinstance(inputs, tuple) else ()
    kwargs = inputs if isinstance(inputs, dict) else {}
    devices = {str(device) for device in device_map.values()}
    if len(devices) == 1:
        # Whoever runs a model on one device takes its inputs there.
        device = next(iter(device_map.values()))
        args = tuple(tensor.to(device) for tensor in args)
        kwargs = {name: tensor.to(device) for name, tensor in kwargs.items()}
    try:
        planner.dispatch(model, device_map)
        with torch.no_grad():
            model(*args, **kwargs)
    except (PlannerError, RuntimeError) as error:
        return Verification(False, str(error), crossings_of(model))
    return Verification(True, None, crossings_of(model))


def crossings_of(model: nn.Module) -> Any:
    ask = getattr(planner, "crossings", None)
    return () if ask is None or not hasattr(model, "_planner_dispatch") else tuple(ask(model))


def snapshot(model: nn.Module) -> Any:
    return [
        (
            name,
            {
                key: (id(value), value if isinstance(value, bool) else None)
                for key, value in vars(module).items()
            },
        )
        for name, module in model.named_modules()
    ], {
        name: (id(tensor), tensor.data_ptr(), tensor._version, str(tensor.device))
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if not tensor.is_meta
    }


def agree(model: nn.Module, device_map: dict[str, Any], inputs: Any) -> Verification:
    before, state = snapshot(model), torch.get_rng_state()
    found = planner.verify(model, device_map, inputs)
    assert snapshot(model) == before and torch.get_rng_state().equal(state)
    want = really(model, device_map, inputs)
    assert found.runs == want.runs, (str(found), str(want), device_map, str(model))
    if found.runs:
        assert found.crossings == want.crossings
    return found


@pytest.mark.parametrize("seeds", range(0, 160, 20))
def test_drawn_nets(virtual_accelerators: Accelerators, seeds: int) -> None:
    for seed in range(seeds, seeds + 20):
        draw = random.Random(seed)
        torch.manual_seed(seed)
        model = nn.Sequential(*(drawn(draw) for _ in range(3)), nn.Linear(8, 8)).eval()
        agree(model, drawn_map(draw, model), (X,))


@pytest.mark.parametrize("name", TINY)
def test_classes_of_transformers(virtual_accelerators: Accelerators, name: str) -> None:
    draw = random.Random(name)
    tiny = TINY[name]
    for _ in range(4):
        model = tiny.make().eval()
        names = [*tiny.outer, *(f"{part}.{layer}" for part in tiny.lists for layer in range(4))]
        device_map = {key: draw.choice([0, 1, "cpu"]) for key in names}
        if name == "mixtral_eager":
            assert planner.verify(model, device_map, tiny.inputs("cpu")).runs is None
            continue
        agree(model, device_map, tiny.inputs("cpu"))
