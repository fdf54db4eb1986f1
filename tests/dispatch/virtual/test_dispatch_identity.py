"""A dispatched model keeps its parameters' identity, and an undispatched one keeps nothing of the dispatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.dispatch.guard import is_offloaded

TWO = {"0": 0, "1": 1}
MIXED = {"0": 0, "1": "cpu"}


def pair() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


@pytest.mark.parametrize("device_map", [{"": 0}, TWO])
def test_an_optimizer_made_before_dispatching_trains(device_map: dict[str, Any]) -> None:
    model = pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    planner.dispatch(model, device_map)
    before = [p.detach().cpu().clone() for p in model.parameters()]
    model(torch.ones(2, 3).to("virtual:0")).sum().backward()
    optimizer.step()
    assert all(not p.cpu().equal(old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("device_map", [{"": 0}, TWO, MIXED])
def test_undispatching_gives_back_the_parameters(device_map: dict[str, Any]) -> None:
    model = pair()
    own = list(model.parameters())
    values = [p.detach().clone() for p in own]
    planner.undispatch(planner.dispatch(model, device_map))
    assert all(now is first for now, first in zip(model.parameters(), own, strict=True))
    assert all(now.equal(first) for now, first in zip(model.parameters(), values, strict=True))
    assert {p.device.type for p in own} == {"cpu"}


def test_a_failure_moves_parameters_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from planner.dispatch.preparing import Prepared

    model = pair()
    model[0].weight.grad = torch.ones(3, 3)
    own = list(model.parameters())

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Prepared, "_install", fail)
    with pytest.raises(MemoryError):
        planner.dispatch(model, TWO)
    assert all(now is first for now, first in zip(model.parameters(), own, strict=True))
    assert {p.device.type for p in own} == {"cpu"}
    assert own[0].grad is not None
    assert own[0].grad.device.type == "cpu"


def test_a_wrapped_forward_does_nothing_after_undispatching() -> None:
    model = pair()
    x = torch.ones(2, 3)
    want = model(x)
    planner.dispatch(model, MIXED)
    inner = model[1].forward
    model[1].forward = lambda value: inner(value)
    planner.undispatch(model)
    assert model(x).equal(want)
    assert not any(is_offloaded(p) for p in model.parameters())
