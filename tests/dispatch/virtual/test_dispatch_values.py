"""Which values an offloaded weight has: what was written counts, wherever and however it was written."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.dispatching.tensors.placeholder import is_offloaded
from rig import Accelerators
from wrapper_tensors import Telling

X = torch.linspace(-1, 1, 8).reshape(2, 4)
MIXED: dict[str, Any] = {"0": 0, "1": "cpu"}


def pair() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).requires_grad_(False)


def expected(model: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    """What the undispatched model gives."""
    answer: torch.Tensor = copy.deepcopy(model).to(0)(x.to(0)).cpu()
    return answer


class Overlapping(nn.Module):
    """Tensors of one module over the same bytes; the forward writes into one of them."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.written = written
        self.register_buffer("total", torch.zeros(4))
        self.register_buffer("first", self.total[:2])
        self.weight = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("part", self.weight.data[1:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        written: torch.Tensor = getattr(self, self.written)
        written.add_(1)
        return x * self.weight + self.total


@pytest.mark.parametrize("written", ["total", "weight"])
@torch.no_grad()
def test_a_view_does_not_write_the_old_values_back(written: str) -> None:
    model, plain = (nn.Sequential(Overlapping(written), nn.Identity()) for _ in range(2))
    planner.dispatch(model, {"0": "cpu", "1": 0}, offload_buffers=True)
    for _ in range(3):
        assert model(X).equal(plain(X))
    found = planner.state_dict(model)
    assert all(found[name].equal(tensor) for name, tensor in plain.state_dict().items())


class Between(nn.Module):
    """Lets somebody do something between its layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.between: Callable[[], Any] = bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](x)
        self.between()
        return self.layers[2](self.layers[1](x))


def write_in_place(model: Any, own: nn.Parameter) -> None:
    own.add_(1)


def write_through_the_map(model: Any, own: nn.Parameter) -> None:
    model.layers[1]._hf_hook.weights_map["weight"].add_(1)


def put_another(model: Any, own: nn.Parameter) -> None:
    model.layers[1]._hf_hook.weights_map["weight"] = own + 1


def put_another_map(model: Any, own: nn.Parameter) -> None:
    hook = model.layers[1]._hf_hook
    hook.weights_map = {**hook.weights_map, "weight": own + 1}


@pytest.mark.parametrize("write", [write_in_place, write_through_the_map, put_another, put_another_map])
@pytest.mark.parametrize("staging_bytes", [None, {0: 10**6}])
@torch.no_grad()
def test_a_resting_weight_that_is_written_to_is_not_computed_with_as_it_was(
    write: Callable[[Any, nn.Parameter], None], staging_bytes: Any
) -> None:
    """Also where it had been copied ahead already."""
    model, plain = Between(), Between()
    own = model.layers[1].weight
    planner.dispatch(model, {"": "cpu"}, execution_map={"": 0}, staging_bytes=staging_bytes)
    want = expected(plain)
    assert all(model(X).equal(want) for _ in range(3))
    plain.layers[1].weight.add_(1)
    model.between = lambda: write(model, own)
    assert model(X).equal(expected(plain))
    model.between = bool
    assert model(X).equal(expected(plain))


WRITES: dict[str, Callable[[torch.Tensor], Any]] = {
    "in place": lambda weight: weight.zero_(),
    "data": lambda weight: weight.data.zero_(),
    "copied": lambda weight: weight.data.copy_(torch.zeros(4, 4)),
    "other data": lambda weight: setattr(weight, "data", torch.zeros_like(weight.data)),
    "part": lambda weight: weight.data[:].view(-1).fill_(0),
    "initialised": nn.init.zeros_,
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    ("device_map", "runs_on"), [(MIXED, 0), (MIXED, "cpu"), ({"0": 0, "1": 1}, 0), ({"0": 0, "1": 1}, "cpu")]
)
@torch.no_grad()
def test_every_write_to_an_aligned_weight_is_kept(
    write: str, device_map: dict[str, Any], runs_on: Any
) -> None:
    model, plain = pair(), pair()
    own = model[1].weight
    planner.dispatch(model, device_map, execution_map={"1": runs_on} if device_map is MIXED else None)
    with planner.align_module_device(model[1], runs_on):
        WRITES[write](model[1].weight)
    plain[1].weight.zero_()
    assert planner.state_dict(model)["1.weight"].equal(plain[1].weight)
    assert model(X).cpu().equal(expected(plain))
    planner.undispatch(model)
    assert model[1].weight is own and own.equal(plain[1].weight)


@pytest.mark.parametrize("written", [0, 1])
@torch.no_grad()
def test_tied_weights_in_files_stay_tied_when_one_is_written_to(written: int, tmp_path: Path) -> None:
    model, plain = pair(), pair()
    for each in (model, plain):
        each[1].weight = each[0].weight
    planner.dispatch_model(model, {"0": "disk", "1": "disk"}, offload_dir=tmp_path, main_device=0)
    assert json.loads((tmp_path / "index.json").read_text())
    with planner.align_module_device(model[written]):
        model[written].weight.mul_(3)
    plain[0].weight.mul_(3)
    assert model[0].weight is model[1].weight and is_offloaded(model[0].weight)
    values = planner.state_dict(model)
    assert all(values[f"{number}.weight"].equal(plain[0].weight) for number in (0, 1))
    assert model(X).cpu().equal(expected(plain))
    planner.undispatch(model)
    assert model[0].weight is model[1].weight and model[0].weight.equal(plain[0].weight)


@pytest.mark.parametrize("outside", ["raise", "fetch"])
@pytest.mark.parametrize("read", [lambda s: s.cpu(), lambda s: s.tolist(), lambda s: s[0]])
def test_the_storage_of_an_offloaded_weight_has_no_values(read: Callable[[Any], Any], outside: Any) -> None:
    weight = planner.dispatch(pair(), MIXED, outside=outside)[1].weight
    with pytest.raises(NotImplementedError, match="meta"):
        read(weight.untyped_storage())


class Twice(nn.Module):
    """Two pairs of tied layers in one block, all of one shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in "abcd"})
        for one, other in ("ab", "cd"):
            weight = nn.Parameter(Telling(self.layers[one].weight.detach()), requires_grad=False)
            self.layers[one].weight = self.layers[other].weight = weight
        self.seen: list[Any] = []

    def weights(self) -> list[Any]:
        return [layer.weight for layer in self.layers.values()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers.values():
            x = layer(x)
        self.seen = self.weights()
        return x


def is_tied_in_pairs(a: Any, b: Any, c: Any, d: Any) -> bool:
    return a is b and c is d and a is not c


def test_tied_wrapper_tensors_that_are_offloaded_stay_one() -> None:
    """They all have the address 0."""
    model, want = nn.ModuleList([Twice(), nn.Linear(4, 4)]), Twice().to(0)(X.to(0)).cpu()
    part, own = model[0], model[0].weights()
    planner.dispatch(model, {"0": "cpu", "1": 0})
    assert is_tied_in_pairs(*part.weights()) and all(map(is_offloaded, part.weights()))
    for _ in range(2):
        assert part(X).cpu().equal(want)
        assert is_tied_in_pairs(*part.seen)
        assert all(type(weight.data) is Telling and weight.device == torch.device(0) for weight in part.seen)
    planner.undispatch(model)
    assert all(now is first for now, first in zip(part.weights(), own, strict=True))
    assert part.to(0)(X.to(0)).cpu().equal(want)


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 2.0), requires_grad=False)
        self.register_buffer("shift", torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + self.shift


@pytest.mark.parametrize("device", ["cpu", "virtual:0"])
def test_many_values_of_an_offloaded_buffer_at_once(device: str, virtual_accelerators: Accelerators) -> None:
    model = nn.Sequential(Shifted(), nn.Identity())
    plain = copy.deepcopy(model).to(0)
    planner.dispatch(model, {"0": "cpu", "1": 0}, offload_buffers=True)
    shifts = torch.randn(3, 4)

    def many(each: nn.Module, stacked: torch.Tensor) -> torch.Tensor:
        def one(shift: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = torch.func.functional_call(each, {"0.shift": shift}, (X.to(0),))
            return answer

        return torch.func.vmap(one)(stacked)

    want = many(plain, shifts.to(0))
    stand_in = model[0].shift
    assert many(model, shifts.to(device)).equal(want)
    assert model[0].shift is stand_in and is_offloaded(stand_in)
    assert model(X).equal(plain(X.to(0)).cpu())
    assert planner.state_dict(model)["0.shift"].equal(torch.arange(4.0))
