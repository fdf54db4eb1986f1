"""Arguments of blocks: what reaches them, what they write reaches the caller, and the caller's containers stay as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import OffloadError
from rig import Accelerators

X = torch.linspace(-1, 1, 4)


class Passing(nn.Module):
    """Hands its argument to one part on the first device, and to one on the second."""

    def __init__(self, part: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = part(), part()

    def forward(self, value: Any) -> Any:
        self.first(value)
        return self.second(value)


class Weighted(nn.Module):
    """Runs a function of its weight and its arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.full((4,), 2.0), requires_grad=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.weight, *args, **kwargs)


def weighted(function: Callable[..., Any]) -> Callable[[], nn.Module]:
    return lambda: Weighted(function)


def spread(model: nn.Module, **options: Any) -> nn.Module:
    return planner.dispatch(model, {"first": 0, "second": 1}, **options)


class Batch(MutableMapping[str, Any]):
    """Keeps its items in an attribute."""

    def __init__(self, items: dict[str, Any]) -> None:
        self.held = items

    def __getitem__(self, key: str) -> Any:
        return self.held[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.held[key] = value

    def __delitem__(self, key: str) -> None:
        del self.held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


class Bag:
    """Moves what is inside in place, in a dict."""

    def __init__(self, items: dict[str, Any]) -> None:
        self.held = items

    def __getitem__(self, key: str) -> Any:
        return self.held[key]

    def to(self, device: Any) -> Bag:
        for key in self.held:
            self.held[key] = self.held[key].to(device)
        return self


class Pile(Bag):
    """The same in a list."""

    def __init__(self, items: dict[str, Any]) -> None:
        self.piled = list(items.values())

    def __getitem__(self, _: str) -> Any:
        return self.piled[0]

    def to(self, device: Any) -> Pile:
        self.piled[0] = self.piled[0].to(device)
        return self


@pytest.mark.parametrize("cls", [Batch, Bag, Pile])
def test_the_callers_containers_stay_as_they_were(cls: type) -> None:
    part = weighted(lambda weight, batch: weight * batch["x"])
    x = X.clone()
    batch = cls({"x": x})
    found = spread(Passing(part))(batch)
    assert batch["x"] is x
    assert found.cpu().equal(Passing(part)({"x": X}))


class Silent:
    """Its `to` returns nothing."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def to(self, device: Any) -> None:
        self.x = self.x.to(device)


def test_a_move_that_returns_nothing_has_moved_its_object() -> None:
    part = weighted(lambda weight, extra=None: weight if extra is None else weight * extra.x)
    extra = Silent(X.clone())
    assert spread(Passing(part))(extra).cpu().equal(X * 2)
    assert extra.x.device.type == "cpu"


@dataclass
class Late:
    """One field may not have been set."""

    late: torch.Tensor = field(init=False)
    x: torch.Tensor

    def __getitem__(self, _: int) -> torch.Tensor:
        return self.x


class Marked(list[Any]):
    pass


class Duo(tuple[Any, ...]):
    """A tuple with a constructor of its own."""

    def __new__(cls, one: Any, other: Any) -> Duo:
        made = super().__new__(cls, (one, other))
        made.scale = 5
        return made


def marked_list(x: torch.Tensor) -> Marked:
    made = Marked([x])
    made.scale = 3  # type: ignore[attr-defined]
    return made


def marked_tensor(x: torch.Tensor) -> torch.Tensor:
    made = torch.stack([x, x])
    made.scale = 7  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("way", ["positional", "keyword"])
@pytest.mark.parametrize("make", [Late, marked_list, lambda x: Duo(x, x), marked_tensor])
def test_marks_and_classes_cross(make: Callable[[torch.Tensor], Any], way: str) -> None:
    seen: list[type] = []

    def scaled(weight: torch.Tensor, value: Any) -> torch.Tensor:
        seen.append(type(value))
        found: torch.Tensor = value[0] * weight * getattr(value, "scale", 1)
        return found

    value = make(X.clone())
    want = value[0] * 2 * getattr(value, "scale", 1)
    model = nn.Sequential(Weighted(scaled), nn.Linear(4, 4))
    planner.dispatch(model, {"0": 1, "1": 0})
    found = model[0](value) if way == "positional" else model[0](value=value)
    assert found.device == torch.device(1) and found.cpu().equal(want)
    assert seen == [type(value)]


@dataclass
class Record:
    x: torch.Tensor


@pytest.mark.parametrize("device", ["cpu", "virtual:0", "virtual:1"])
def test_the_result_goes_where_a_dataclass_came_from(device: str) -> None:
    part = weighted(lambda weight, record: weight * record.x)
    found = spread(Passing(part))(Record(X.to(device)))
    assert found.device == torch.device(device) and found.cpu().equal(X * 2)


class Writing(nn.Module):
    """Adds up in a tensor that all layers get."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        if self.how == "in place":
            total.add_(x)
        elif self.how == "item":
            total[1:3] = x[1:3]
        else:
            total.view(2, 2)[0].mul_(2).add_(1)
        return x * self.weight + total


class Adding(nn.Module):
    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer() for _ in range(4)])
        self.total: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total = total = torch.zeros_like(x)
        for number, layer in enumerate(self.layers):
            x = layer(x, total=total) if number % 2 else layer(x, total)
        return x


@pytest.mark.parametrize("layers", [(0, 1, 1, 0), ("cpu", 0, "cpu", 1)])
@pytest.mark.parametrize("how", ["in place", "item", "view"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_a_block_writes_into_an_argument_reaches_everybody(
    mode: Any, how: str, layers: tuple[Any, ...]
) -> None:
    plain, model = Adding(lambda: Writing(how)).to(0), Adding(lambda: Writing(how))
    device_map = {f"layers.{number}": device for number, device in enumerate(layers)}
    planner.dispatch(model, device_map, execution_map={"layers.0": 1, "layers.2": 1})
    with mode():
        assert model(X).equal(plain(X.to(0)).cpu())
        assert model.total.cpu().equal(plain.total.cpu())


def test_a_write_under_hooks_that_are_called_by_hand_reaches_the_caller() -> None:
    model = spread(Passing(weighted(lambda weight, x: weight + x)))
    total = torch.zeros(4)
    (inside,), _ = model.second._hf_hook.pre_forward(model.second, total)
    assert inside.device == torch.device(1)
    inside.add_(3)
    model.second._hf_hook.post_forward(model.second, inside)
    assert total.tolist() == [3.0] * 4


class Exchanging(nn.Module):
    """Gives a tensor other data between the layers that get it, which no version counts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Weighted(lambda weight, x, mask: x * weight + mask) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(4, device=x.device)
        for layer in self.layers:
            x = layer(x, mask)
            mask.data = mask * 3
        return x


@pytest.mark.parametrize("layers", [(0, 0, 0), (1, 0, 1)])
def test_a_tensor_with_other_data_crosses_again(layers: tuple[int, ...]) -> None:
    want = Exchanging().to(0)(X.to(0)).cpu()
    device_map = {f"layers.{number}": device for number, device in enumerate(layers)}
    model = planner.dispatch_model(Exchanging(), device_map, force_hooks=True, main_device=0)
    assert model(X).equal(want)


class Taking(nn.Module):
    """Computes with whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, scale: Any = None, pair: Any = ()) -> torch.Tensor:
        for matrix in (scale, *pair):
            if matrix is not None:
                x = nn.functional.linear(x, matrix)
        return self.linear(x)


class Asking(nn.Module):
    """Asks a weight for its device, as many models do, and hands something on that it makes there."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second = nn.Linear(4, 4), Taking()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        device = self.first.weight.device
        made = torch.ones(4, 4, device=device)
        if self.way == "positional":
            return self.second(x.to(device))
        return self.second(x, scale=made) if self.way == "keyword" else self.second(x, pair=(made,))


@pytest.mark.parametrize("runs_on", ["cpu", 0])
@pytest.mark.parametrize("way", ["positional", "keyword", "tuple"])
def test_what_is_made_on_an_offloaded_weights_device_crosses(way: str, runs_on: Any) -> None:
    model = Asking(way)
    want = model(X)
    resting = {"first": "cpu", "second": "cpu"}
    planner.dispatch(model, resting, execution_map={"first": 0, "second": runs_on})
    for _ in range(2):
        assert torch.allclose(model(X), want)


class OnMeta(Asking):
    """Makes a tensor without values by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.first.weight = nn.Parameter(torch.empty(4, 4, device="meta"))
        return super().forward(x)


@pytest.mark.parametrize("runs_on", ["cpu", 0])
@pytest.mark.parametrize("way", ["positional", "keyword", "tuple"])
def test_a_tensor_without_values_does_not_cross(way: str, runs_on: Any) -> None:
    """On the CPU, torch computes garbage with one; elsewhere, its error names nothing."""
    model = OnMeta(way)
    resting = {"first": "cpu", "second": "cpu"}
    planner.dispatch(model, resting, execution_map={"first": 0, "second": runs_on})
    for _ in range(2):
        with pytest.raises(OffloadError, match=r"argument of 'second.*meta device.*offloaded"):
            model(X)


def test_arguments_do_not_stay(virtual_accelerators: Accelerators) -> None:
    """Copies of arguments and crossings end with the call."""
    model = Adding(lambda: Writing("in place"))
    planner.dispatch(model, {f"layers.{number}": number % 2 for number in range(4)})
    model(X)
    model.total = None
    used_bytes = [virtual_accelerators.used_bytes(index) for index in (0, 1)]
    model(X)
    model.total = None
    assert [virtual_accelerators.used_bytes(index) for index in (0, 1)] == used_bytes


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [torch.sort, lambda x: x.max(0), lambda x: torch.topk(x, 2)])
def test_what_torch_returns_from_its_own_operators_crosses(make: Callable[..., Any], compiled: bool) -> None:
    def handed_on(weight: torch.Tensor, found: Any) -> Any:
        return type(found)((found.values * weight.sum(), found.indices))

    model: Any = spread(Passing(weighted(handed_on)))
    want = Passing(weighted(handed_on))(make(X))
    found = (torch.compile(model, backend="eager") if compiled else model)(make(X))
    assert type(found) is type(want) and found.indices.equal(want.indices) and found.values.equal(want.values)
    assert found.values.device.type == "cpu"
