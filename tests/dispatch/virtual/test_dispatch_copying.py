"""Copies, pickles and exports of dispatched models: as they run, after they were changed, and in parts."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import OffloadError
from planner.dispatching.tensors.placeholder import is_offloaded
from rig import Accelerators

X = torch.linspace(-1, 1, 8).reshape(2, 4)
MIXED: dict[str, Any] = {"0": 0, "1": "cpu", "2": 1}
ALL_REST: dict[str, Any] = {"": "cpu"}
COPIED_AHEAD: dict[str, Any] = {"execution_map": {"": 0}, "staging_bytes": {0: 10**6}}


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "pickle": pickled, "torch.save": saved}


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]).requires_grad_(False)


def expected(model: nn.Module) -> torch.Tensor:
    """What the undispatched model gives."""
    answer: torch.Tensor = copy.deepcopy(model).to(0)(X.to(0)).cpu()
    return answer


def change(model: nn.Module) -> None:
    """Assigns parameters over what lies in the slots."""
    for number, layer in enumerate(model):
        values = {"weight": torch.full((4, 4), number + 0.5), "bias": torch.full((4,), -float(number))}
        layer.load_state_dict(values, assign=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_undispatched", [False, True])
def test_a_copy_has_the_parameters_that_were_assigned(way: str, is_undispatched: bool) -> None:
    """After forwards in which blocks were copied ahead, so that hooks know each other."""
    model, plain = planner.dispatch(layers(), ALL_REST, **COPIED_AHEAD), layers()
    for _ in range(3):
        model(X)
    for each in (model, plain):
        change(each)
    want = expected(plain)
    assert model(X).equal(want)
    twin = WAYS[way](model)
    if is_undispatched:
        planner.undispatch(twin)
        assert not any(is_offloaded(parameter) for parameter in twin.parameters())
        assert expected(twin).equal(want)
    else:
        assert all(twin(X).equal(want) for _ in range(3))
    assert model(X).equal(want)


class Copying(nn.Module):
    """Copies what it is told to, from inside of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, then: Callable[[], Any] = bool) -> torch.Tensor:
        then()
        x = self.linear(x)
        then()
        return x


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Copying() for _ in range(3)])

    def forward(self, x: torch.Tensor, then: Callable[[], Any] = bool) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, then)
        return x


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("staging_bytes", [None, {0: 10**6}])
@torch.no_grad()
def test_a_copy_of_a_running_model_has_stand_ins(
    way: str, staging_bytes: Any, virtual_accelerators: Accelerators
) -> None:
    """Snapshots are taken in forward hooks."""
    torch.manual_seed(0)
    model = Whole()
    want = expected(model)
    planner.dispatch(model, ALL_REST, execution_map={"": 0}, staging_bytes=staging_bytes)
    for _ in range(2):
        model(X)
    used_bytes, twins = virtual_accelerators.used_bytes(0), list[nn.Module]()
    assert model(X, lambda: twins.append(WAYS[way](model))).equal(want)
    assert len(twins) == 6
    assert virtual_accelerators.used_bytes(0) == used_bytes
    for twin in twins:
        assert all(is_offloaded(parameter) for parameter in twin.parameters())
        assert twin(X).equal(want)
    planner.undispatch(model)
    assert twins[1](X).equal(want)
    assert planner.undispatch(twins[3]).to(0)(X.to(0)).cpu().equal(want)


@pytest.mark.parametrize("way", WAYS)
def test_a_running_layer_with_an_assigned_parameter_is_copied_with_it(way: str) -> None:
    torch.manual_seed(0)
    model, made = Whole().requires_grad_(False), list[nn.Module]()
    plain = copy.deepcopy(model)
    planner.dispatch(model, ALL_REST, execution_map={"": 0})
    mine = nn.Parameter(torch.full((4, 4), 0.25), requires_grad=False)
    for each in (model, plain):
        each.layers[1].linear.weight = nn.Parameter(mine.clone(), requires_grad=False)
    model(X, lambda: made.append(WAYS[way](model)))
    for twin in made:
        assert twin.layers[1].linear.weight.equal(mine) and twin.layers[1].linear.weight.device.type == "cpu"
        assert twin(X).equal(expected(plain))


@pytest.mark.parametrize("way", WAYS)
def test_an_offloaded_module_can_be_copied_by_itself(way: str) -> None:
    model, plain = planner.dispatch(layers(), MIXED), layers().to(0)
    twin = WAYS[way](model[1])
    want = plain[1](X.to(0)).cpu()
    assert is_offloaded(twin.weight) and twin.weight is not model[1].weight
    assert twin(X).cpu().equal(want)
    with planner.align_module_device(twin):
        twin.weight.zero_()
    assert model[1](X).cpu().equal(want) and not twin(X).cpu().equal(want)


@pytest.mark.parametrize("way", WAYS)
def test_ties_survive_a_copy_of_a_running_model(way: str) -> None:
    torch.manual_seed(0)
    model, made = Whole().requires_grad_(False), list[nn.Module]()
    model.layers[2].linear.weight = model.layers[0].linear.weight
    want = expected(model)
    planner.dispatch(model, ALL_REST, execution_map={"": 0})
    model(X, lambda: made.append(WAYS[way](model)))
    for twin in made:
        assert twin.layers[2].linear.weight is twin.layers[0].linear.weight
        assert twin(X).equal(want)
    first = planner.undispatch(made[0])
    assert first.layers[2].linear.weight is first.layers[0].linear.weight


def test_a_shallow_copy_shares_everything() -> None:
    model = planner.dispatch(layers(), MIXED)
    want = model(X)
    twin = copy.copy(model)
    assert twin(X).equal(want)
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True))


ALONE: dict[str, Callable[[nn.Module], Any]] = {
    "weight": lambda model: model[1].weight,
    "view": lambda model: model[1].weight.T,
    "detached": lambda model: model[1].weight.detach(),
    "parameters": lambda model: dict(model.named_parameters()),
    "state dict": lambda model: model.state_dict(),
    "list": lambda model: [model[1].bias],
}


@pytest.mark.parametrize("way", ["pickle", "torch.save"])
@pytest.mark.parametrize("what", ALONE)
def test_stand_ins_alone_are_not_saved(what: str, way: str) -> None:
    """They would be read as empty tensors, or not at all."""
    model = planner.dispatch(layers(), MIXED)
    model(X)
    with pytest.raises(OffloadError, match=r"'1\.\w+' is offloaded.*planner\.state_dict\(model\)") as caught:
        WAYS[way](ALONE[what](model))
    assert caught.value.name in ("1.weight", "1.bias")


def test_a_stand_in_may_be_copied() -> None:
    model = planner.dispatch(layers(), MIXED)
    twin = copy.deepcopy(model[1].weight)
    assert is_offloaded(twin) and twin.is_leaf and twin.shape == (4, 4)
    with pytest.raises(OffloadError, match=r"'1\.weight'"):
        twin.sum()


def test_what_can_be_pickled_after_undispatching_is_ordinary() -> None:
    model, plain = planner.undispatch(planner.dispatch(layers(), MIXED)), layers()
    for way in WAYS.values():
        found = way(model.state_dict())
        assert all(tensor.equal(plain.state_dict()[name]) for name, tensor in found.items())


class Named(nn.Module):
    """Exports read the names of arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)) * scale)


@pytest.mark.parametrize("strict", [False, True])
def test_export_over_two_devices(strict: bool) -> None:
    torch.manual_seed(0)
    model = Named().eval().requires_grad_(False)
    x, scale = X.to(0), torch.full((4,), 3.0, device=0)
    want = copy.deepcopy(model).to(0)(x, scale=scale)
    planner.dispatch(model, {"first": 0, "second": 1})
    program = torch.export.export(model, (x,), {"scale": scale}, strict=strict)
    assert program.module()(x, scale=scale).equal(want)
    assert model(x, scale=scale).equal(want)
    torch._dynamo.reset()


def test_a_shallow_copy_has_stand_ins() -> None:
    model = planner.dispatch(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), MIXED)
    twin = copy.copy(model[1])
    assert all(is_offloaded(p) for p in (twin.weight, twin.bias))
    assert twin.weight.shape == (4, 4)
    assert twin(X).equal(model[1](X))
