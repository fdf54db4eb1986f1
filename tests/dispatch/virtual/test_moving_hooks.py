"""`cpu_offload_with_hook`: the whole model moves, whatever has happened to its parts."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import planner
from rig import Accelerators

X = torch.linspace(-1, 1, 16).reshape(2, 8)


class Counting(nn.Module):
    """Has a buffer and no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((8,), 2.0))
        self.register_buffer("offset", torch.ones(8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = x * self.scale + self.offset
        return scaled


def net() -> nn.Sequential:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 8), Counting())
    return nn.Sequential(nn.Linear(8, 8), inner, Counting(), nn.Linear(8, 8))


def expected(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = copy.deepcopy(model)(X)
    return answer


def devices(model: nn.Module) -> set[str]:
    return {str(tensor.device) for tensor in (*model.parameters(), *model.buffers())}


def run(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model(X)
    return answer.cpu()


def tensors_of(model: nn.Module) -> list[tuple[dict[str, Any], str]]:
    return [
        (table, name)
        for module in model.modules()
        for table in (module._parameters, module._buffers)
        for name in table
    ]


MOVES: dict[str, Callable[[nn.Sequential, Any], Any]] = {
    "first": lambda model, device: model[0].to(device),
    "inner": lambda model, device: model[1].to(device),
    "inner of inner": lambda model, device: model[1][0].to(device),
    "only buffers": lambda model, device: model[2].to(device),
    "last": lambda model, device: model[3].to(device),
    "one bias": lambda model, device: setattr(model[3].bias, "data", model[3].bias.data.to(device)),
}


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("move", MOVES)
def test_a_part_that_was_moved_by_hand(virtual_accelerators: Accelerators, move: str, device: int) -> None:
    model = net()
    want = expected(model)
    planner.cpu_offload_with_hook(model, 0)
    MOVES[move](model, device)
    assert torch.allclose(run(model), want, atol=1e-6)
    MOVES[move](model, "cpu")  # the other way
    assert torch.allclose(run(model), want, atol=1e-6)
    assert devices(model) == {"virtual:0"}


@pytest.mark.parametrize("move", MOVES)
def test_the_previous_model_leaves_nothing_on_the_card(virtual_accelerators: Accelerators, move: str) -> None:
    first, second = net(), net()
    _, hook = planner.cpu_offload_with_hook(first, 0)
    planner.cpu_offload_with_hook(second, 0, prev_module_hook=hook)
    run(first)
    MOVES[move](first, "cpu")
    run(second)
    assert devices(first) == {"cpu"} and devices(second) == {"virtual:0"}
    MOVES[move](first, 0)  # all but this is on the CPU
    run(second)
    assert devices(first) == {"cpu"}


def test_a_part_with_a_hook_of_its_own(virtual_accelerators: Accelerators) -> None:
    """transformers' Bark: the embedding is called by itself, then the model around it."""
    model = net()
    want = expected(model)
    planner.cpu_offload_with_hook(model[0], 0)
    _, hook = planner.cpu_offload_with_hook(model, 0)
    with torch.no_grad():
        model[0](X)
    assert devices(model) == {"cpu", "virtual:0"}
    assert torch.allclose(run(model), want, atol=1e-6)
    hook.offload()
    assert devices(model) == {"cpu"}


def test_a_previous_hook_of_accelerate_itself(virtual_accelerators: Accelerators) -> None:
    accelerate = pytest.importorskip("accelerate")
    first, second = net(), net()
    _, hook = accelerate.cpu_offload_with_hook(first, torch.device(0))
    planner.cpu_offload_with_hook(second, 0, prev_module_hook=hook)
    run(first)
    first[0].to("cpu")
    run(second)
    assert devices(first) == {"cpu"}


PLACED: dict[str, Callable[[nn.Module], Any]] = {
    "dispatched": lambda part: planner.dispatch(part, {"0": 1, "1": 0}),
    "dispatched and offloaded": lambda part: planner.dispatch(
        part, {"0": "cpu", "1": 1}, execution_map={"0": 0}
    ),
    "offloaded": lambda part: planner.cpu_offload(part, 0),
    "on another card": lambda part: planner.add_hook_to_module(
        part, planner.AlignDevicesHook(1, io_same_device=True, place_submodules=True)
    ),
}


@pytest.mark.parametrize("place", PLACED)
def test_a_part_that_is_placed_stays_there(virtual_accelerators: Accelerators, place: str) -> None:
    model = net()
    want = expected(model)
    PLACED[place](model[1])
    before = [str(tensor.device) for tensor in model[1].state_dict().values()]
    _, hook = planner.cpu_offload_with_hook(model, 0)
    for _ in range(2):
        assert torch.allclose(run(model), want, atol=1e-6)
        hook.offload()
        assert [str(tensor.device) for tensor in model[1].state_dict().values()] == before
        assert devices(model[0]) == {"cpu"}


def test_parts_with_hooks_for_the_same_device_move_with_the_model(virtual_accelerators: Accelerators) -> None:
    model = net()
    want = expected(model)
    planner.attach_execution_device_hook(model, 0)
    _, hook = planner.cpu_offload_with_hook(model, 0)
    assert torch.allclose(run(model), want, atol=1e-6)
    hook.offload()
    assert devices(model) == {"cpu"}


@pytest.mark.parametrize("seed", range(40))
def test_any_tensors_anywhere(virtual_accelerators: Accelerators, seed: int) -> None:
    draw = random.Random(seed)
    model = net()
    want = expected(model)
    _, hook = planner.cpu_offload_with_hook(model, draw.randrange(2))
    for _ in range(3):
        for table, name in tensors_of(model):
            if draw.random() < 0.3:
                with torch.no_grad():
                    table[name].data = table[name].data.to(draw.choice([0, 1, "cpu"]))
        if draw.random() < 0.3:
            hook.offload()
            assert devices(model) == {"cpu"}
        assert torch.allclose(run(model), want, atol=1e-6)
        assert len(devices(model)) == 1
