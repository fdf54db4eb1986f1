"""What lies in a slot during an offloaded forward, and what is left of it afterwards."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import OffloadError
from planner.dispatching.offload.refcount import Use
from planner.dispatching.tensors.placeholder import is_offloaded
from rig import Accelerators

X = torch.arange(6.0).reshape(2, 3)


class Two(nn.Module):
    """One part after the other."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(self.a(x))


def halves(b: nn.Module | None = None) -> Two:
    torch.manual_seed(0)
    a = nn.Linear(3, 3)
    return Two(a, nn.Linear(3, 3) if b is None else b).requires_grad_(False)


@pytest.mark.parametrize("device", ["cpu", "virtual:0"])
def test_functional_call_changes_nothing(device: str) -> None:
    model = halves()
    plain = copy.deepcopy(model)
    planner.dispatch(model, {"a": 0, "b": "cpu"})
    swapped = torch.full((3, 3), 2.0)
    want = torch.func.functional_call(plain, {"b.weight": swapped}, (X,))
    assert torch.func.functional_call(model, {"b.weight": swapped.to(device)}, (X,)).equal(want)
    assert is_offloaded(model.b.weight)
    assert model(X).equal(plain(X))
    assert planner.state_dict(model)["b.weight"].equal(plain.b.weight)


def test_functional_call_of_many() -> None:
    model = halves()
    plain, weights = copy.deepcopy(model), torch.randn(4, 3, 3)
    planner.dispatch(model, {"a": 0, "b": "cpu"})

    def many(each: nn.Module, stacked: torch.Tensor) -> torch.Tensor:
        return torch.func.vmap(lambda w: torch.func.functional_call(each, {"b.weight": w}, (X,)))(stacked)

    torch.testing.assert_close(many(model, weights), many(plain, weights))
    assert is_offloaded(model.b.weight)


class Meanwhile(nn.Module):
    """Something happens while its weight is used."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.happens: Callable[[], Any] = bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.happens()
        return x * self.weight


def test_what_is_in_use_on_one_device_is_not_brought_to_another() -> None:
    model = halves(Meanwhile())
    want = model(X)
    planner.dispatch(model, {"a": 0, "b": "cpu"})
    (offloaded,) = model.b._hf_hook.offloaded_modules
    refused = []

    def elsewhere() -> None:
        use = Use([offloaded])
        with pytest.raises(OffloadError, match=r"'b\.weight' is in use on virtual:0") as caught:
            use.begin(torch.device("virtual:1"))
        use.end()
        refused.append(caught.value.name)

    model.b.happens = elsewhere
    assert model(X).equal(want)
    assert refused == ["b.weight"]
    assert is_offloaded(model.b.weight) and not offloaded.is_live


class ThreeViews(nn.Module):
    """Two owners of one weight, and two of a part that begins where it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.third, self.fourth = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
        self.second.weight = self.first.weight
        self.third.weight = self.fourth.weight = nn.Parameter(self.first.weight.data[:2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fourth(self.second(self.first(x))) + self.third(x)


def test_a_view_at_the_same_address_is_another_tensor() -> None:
    model = halves(ThreeViews())
    plain = copy.deepcopy(model)
    planner.dispatch(model, {"a": 0, "b": "cpu"})
    torch.testing.assert_close(model(X), plain(X), rtol=0, atol=0)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_model_share_what_is_tied(how: Any) -> None:
    model = planner.dispatch(halves(ThreeViews()), {"a": 0, "b": "cpu"})
    made, seen = how(model), []
    made.b.register_forward_pre_hook(lambda *_: seen.append(made.b.first.weight is made.b.second.weight))
    assert made(X).equal(model(X))
    made.b.fourth.register_forward_pre_hook(
        lambda *_: seen.append(made.b.third.weight is made.b.fourth.weight)
    )
    made(X)
    shared = [
        r.store.shares
        for f in made._planner_dispatch.forwards
        for r in f.hook.offloaded_modules
        if any(s is not None for s in r.store.shares)
    ]
    assert len(shared) == 4
    assert shared[0][0] is shared[1][0]
    assert shared[2][0] is shared[3][0] is not shared[0][0]


class Counting(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.register_buffer("n", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "in place":
            self.n += 1
        elif self.way == "data":
            self.n.data.add_(1)
        else:
            self.n = self.n + 1
        return x + self.n


@pytest.mark.parametrize("way", ["in place", "data", "replaced"])
@pytest.mark.parametrize("place", ["cpu", "disk"])
@torch.no_grad()
def test_changed_buffers_are_kept(
    way: str, place: str, tmp_path: Path, virtual_accelerators: Accelerators
) -> None:
    model = halves(Counting(way))
    plain = copy.deepcopy(model)
    planner.dispatch_model(
        model, {"a": 0, "b": place}, main_device=0, offload_dir=tmp_path, offload_buffers=True
    )
    used_bytes = virtual_accelerators.used_bytes(0)
    for _ in range(3):
        assert model(X).cpu().equal(plain(X))
    assert virtual_accelerators.used_bytes(0) == used_bytes
    assert planner.state_dict(model)["b.n"].tolist() == [3.0, 3.0, 3.0]


class Empty(nn.Module):
    """Some models may have no tokens of a kind."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.none = nn.Parameter(torch.ones(1, 3)), nn.Parameter(torch.ones(0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.w, self.none, x])


def test_an_empty_weight_comes_along() -> None:
    model = halves(Empty())
    plain = copy.deepcopy(model)
    planner.dispatch(model, {"a": 0, "b": "cpu"})
    for _ in range(2):
        assert model(X).equal(plain(X))


class Marked(nn.Parameter):
    """A parameter whose class and mark the forward looks at."""

    def __new__(cls, data: torch.Tensor, requires_grad: bool = False, scale: float = 1.0) -> Any:
        made = torch.Tensor._make_subclass(cls, data, requires_grad)
        made.scale = scale
        return made


class Scaled(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.w = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w * self.w.scale * (2 if type(self.w) is Marked else 1)


@pytest.mark.parametrize("is_marked", [False, True])
def test_a_live_parameter_has_its_class_and_marks(is_marked: bool) -> None:
    weight = Marked(torch.ones(3), scale=3.0) if is_marked else nn.Parameter(torch.ones(3), False)
    weight.scale = 3.0
    model = halves(Scaled(weight))
    want = model(X)
    planner.dispatch(model, {"a": 0, "b": "cpu"})
    assert model(X).equal(want)


class Enabling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            return self.inner(x)


def test_a_gradient_is_refused_when_it_is_turned_on_inside() -> None:
    model = Two(nn.Linear(3, 3), Enabling())
    planner.dispatch(model, {"a": 0, "b": "cpu"})
    with torch.no_grad():
        result = model(X.to("virtual:0"))
    with pytest.raises(OffloadError, match="gradient would be lost"):
        result.sum().backward()
