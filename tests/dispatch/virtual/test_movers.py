"""Whatever moves or converts a part of a dispatched model is told or refused; no forward after it is wrong or unexplained."""

from __future__ import annotations

import copy
import logging
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import OffloadError, PlannerError
from rig import Accelerators

X = torch.linspace(-1, 1, 16).reshape(2, 8)


class Res(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("scale", torch.full((8,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x + self.fc(x) * self.scale
        return made


class Wrapper(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Res() for _ in range(3))
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        made: torch.Tensor = self.act(x)
        return made


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False).half().float()  # values that survive the casts


MAPS: dict[str, dict[str, Any]] = {
    "two cards": {"first": 0, "layers.0": 0, "layers.1": 1, "layers.2": 1},
    "cards and cpu": {"first": 0, "layers.0": 1, "layers.1": "cpu", "layers.2": 1},
    "cpu first": {"first": "cpu", "layers.0": 1, "layers.1": 0, "layers.2": "cpu"},
    "parts run on the cpu": {"first": "cpu", "layers.0": 1, "layers.1": 0, "layers.2": 1},
}
RUNS_ON_CPU = {"first": "cpu"}


def dispatched(model: nn.Module, which: str) -> nn.Module:
    execution = RUNS_ON_CPU if which == "parts run on the cpu" else None
    return planner.dispatch(model, MAPS[which], execution_map=execution)


def assign_copies(device: Any) -> Callable[[nn.Module], Any]:
    def load(module: nn.Module) -> None:
        values = {name: tensor.to(device) for name, tensor in planner.state_dict(module).items()}
        module.load_state_dict(values, assign=True)

    return load


def set_data(device: Any) -> Callable[[nn.Module], Any]:
    def move(module: nn.Module) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.to(device)

    return move


def swapped(device: Any) -> Callable[[nn.Module], Any]:
    def move(module: nn.Module) -> None:
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            module.to(device)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)

    return move


MOVERS: dict[str, Callable[[nn.Module], Any]] = {
    "to 0": lambda module: module.to(0),
    "to 1": lambda module: module.to(1),
    "to cpu": lambda module: module.to("cpu"),
    "to meta": lambda module: module.to("meta"),
    "to like a tensor": lambda module: module.to(torch.empty(0, device="virtual:1")),
    "to by keyword": lambda module: module.to(device="virtual:0", non_blocking=True),
    "swapped": swapped(0),
    "cpu": lambda module: module.cpu(),
    "virtual": lambda module: module.virtual(1),  # what `cuda` is on this device type
    "half and back": lambda module: module.half().float(),
    "double and back": lambda module: module.double().float(),
    "type and back": lambda module: module.type(torch.float64).type(torch.float32),
    "to_empty": lambda module: module.to_empty(device="meta"),
    "share_memory": lambda module: module.share_memory(),
    "_apply": lambda module: module._apply(lambda tensor: tensor.to(1)),
    "assign from the cpu": assign_copies("cpu"),
    "assign on a card": assign_copies(0),
    "data to 0": set_data(0),
    "data to the cpu": set_data("cpu"),
}
# What leaves the plan by a way that torch does not show us; the next forward tells.
SILENT = {"assign from the cpu", "assign on a card", "data to 0", "data to the cpu"}

PARTS: dict[str, Callable[[Wrapper], nn.Module]] = {
    "wrapper": lambda whole: whole,
    "model": lambda whole: whole.net,
    "list": lambda whole: whole.net.layers,
    "layer 0": lambda whole: whole.net.layers[0],
    "layer 1": lambda whole: whole.net.layers[1],
    "inside a layer": lambda whole: whole.net.layers[2].fc,
    "first": lambda whole: whole.net.first,
}


def state(model: nn.Module) -> dict[str, tuple[str, torch.dtype]]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: (str(tensor.device), tensor.dtype) for name, tensor in tensors}


def is_moved(before: dict[str, tuple[str, torch.dtype]], after: dict[str, tuple[str, torch.dtype]]) -> bool:
    return any(before[name][0] != after[name][0] for name in before)


def judge(whole: Wrapper, part: nn.Module, mover: str, warned: list[str]) -> bool:
    """After a mover: told, refused, or as if nothing had happened. Whether nothing has changed."""
    before = state(whole)
    warned.clear()
    try:
        MOVERS[mover](part)
    except PlannerError:
        # What goes tensor by tensor gets as far as the one that is refused.
        assert state(whole) == before or mover in SILENT, "refused, but something has changed"
        return mover not in SILENT
    if is_moved(before, state(whole)) and mover not in SILENT:
        assert len(warned) == 1, warned
    return state(whole) == before


def is_right(whole: Wrapper, want: torch.Tensor) -> bool:
    """Whether a forward is right; otherwise it raised by name."""
    try:
        got = whole(X).cpu()
    except OffloadError as error:
        names = {name for name, _ in (*whole.net.named_parameters(), *whole.net.named_buffers())}
        assert error.name in names and error.name in str(error)
        return False
    assert torch.allclose(got, want, atol=1e-5)
    return True


@pytest.fixture
def warned() -> Any:
    """Messages of the logger that tells of moves."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("planner.dispatching.methods.overrides")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


@pytest.mark.parametrize("mover", MOVERS)
@pytest.mark.parametrize("which", MAPS)
def test_every_mover_on_every_part(
    virtual_accelerators: Accelerators, warned: list[str], which: str, mover: str
) -> None:
    for part in PARTS:
        model = net()
        want = model(X)
        whole = Wrapper(dispatched(model, which))
        assert torch.allclose(whole(X).cpu(), want, atol=1e-5)
        is_unchanged = judge(whole, PARTS[part](whole), mover, warned)
        assert is_right(whole, want) or not is_unchanged, part


@pytest.mark.parametrize("seed", range(40))
def test_movers_one_after_the_other(virtual_accelerators: Accelerators, warned: list[str], seed: int) -> None:
    draw = random.Random(seed)
    model = net()
    want = model(X)
    which = draw.choice(list(MAPS))
    whole = Wrapper(dispatched(model, which))
    # What loses values for good cannot be compared afterwards.
    movers = [name for name in MOVERS if "meta" not in name and "empty" not in name]
    for _ in range(3):
        judge(whole, PARTS[draw.choice(list(PARTS))](whole), draw.choice(movers), warned)
        is_right(whole, want)
    dispatched(model, which)  # the remedy that the error names
    assert torch.allclose(whole(X).cpu(), want, atol=1e-4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_tells_of_its_own_moves(
    virtual_accelerators: Accelerators, warned: list[str], copied: Callable[[nn.Module], Any]
) -> None:
    model = dispatched(net(), "two cards")
    twin = copied(model)
    want = model(X).cpu()
    twin.to(0)
    assert len(warned) == 1
    with pytest.raises(OffloadError, match=r"'layers\.1\.\w+.*lies on virtual:0.*runs on virtual:1"):
        twin(X)
    assert model(X).cpu().equal(want)
    planner.undispatch(twin)
    assert not any("_apply" in vars(module) for module in twin.modules())


def test_moved_and_moved_back(virtual_accelerators: Accelerators, warned: list[str]) -> None:
    model = dispatched(net(), "two cards")
    want = model(X)
    model.layers[1].to(0)
    with pytest.raises(OffloadError, match=r"layers\.1"):
        model(X)
    model.layers[1].to(1)
    assert model(X).equal(want)


def test_no_values_no_forward(virtual_accelerators: Accelerators) -> None:
    """torch computes with meta tensors beside tensors of the CPU, and gives garbage."""
    model = dispatched(net(), "parts run on the cpu")
    model.first.to("meta")
    with pytest.raises(OffloadError, match=r"first\.weight.* lies on meta"):
        model(X)


def test_other_errors_stay_what_they_are(virtual_accelerators: Accelerators) -> None:
    model = dispatched(net(), "two cards")
    model.layers[1].to(0)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(X[:, :3])


def test_a_part_that_a_model_moves_in_its_own_forward(virtual_accelerators: Accelerators) -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.table = nn.Linear(8, 8), nn.Embedding(4, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.fc(x)
            made: torch.Tensor = x + self.table.to(x.device).weight[1]
            return made

    model = Moving().requires_grad_(False)
    want = model(X)
    planner.dispatch(model, {"fc": 1, "table": 0})
    assert all(torch.allclose(model(X).cpu(), want, atol=1e-6) for _ in range(3))


@pytest.mark.parametrize("place", ["instead", "inside"])
def test_a_layer_that_was_put_into_a_block_on_another_device_is_named(place: str) -> None:
    model = planner.dispatch(net(), {"first": 0, "layers.0": 0, "layers.1": 1, "layers.2": 1})
    block: Any = model.layers[1]
    block.fc = nn.Linear(8, 8) if place == "instead" else nn.Sequential(block.fc, nn.Linear(8, 8))
    with pytest.raises(
        OffloadError, match=r"'layers\.1\.fc.*\.?weight' lies on cpu.*runs on virtual:1.*put in after"
    ):
        model(X)
    block.fc.to(1)
    assert model(X).shape == X.shape


@torch.no_grad()
def test_a_layer_that_was_put_between_blocks_may_lie_anywhere() -> None:
    model, plain = net(), net()
    planner.dispatch(model, {"first": 0, "layers.0": 0, "layers.1": 1, "layers.2": 1})
    for each in (model, plain):
        torch.manual_seed(1)
        each.layers[1] = nn.Sequential(each.layers[1], nn.Linear(8, 8))
    assert torch.allclose(model(X).cpu(), plain(X), atol=1e-6)
