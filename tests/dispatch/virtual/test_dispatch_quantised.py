"""Parameters that carry tensors in attributes, as quantised weights do: placed whole, counted whole, or refused."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import OffloadError, check
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.errors import InfeasibleError
from planner.model.carried import carried_tensors
from planner.model.tree import describe_tensor
from wrapper_tensors import Flat, Int8, Packed, Scaled, Slotted, State, Telling

X = torch.linspace(-1, 1, 16).reshape(2, 8)


def nf4(data: torch.Tensor, layer: nn.Module) -> Any:
    return Packed(data, state=State(torch.rand(8), State(torch.rand(8))), module=layer)


def int8(data: torch.Tensor, layer: nn.Module) -> Any:
    made = Int8(data, SCB=torch.rand(8))
    made.CB = made.data
    return made


def in_containers(data: torch.Tensor, layer: nn.Module) -> Any:
    made, scale = Scaled(data), torch.rand(8)
    made.scales = {"all": [scale, (scale[:4], scale[4:])], "lock": threading.Lock, "layer": layer}
    made.again = made.scales
    return made


def in_slots(data: torch.Tensor, layer: nn.Module) -> Any:
    made = Scaled(data)
    made.slotted = Slotted(torch.rand(8), made)
    made.lock = threading.Lock()
    return made


SCALES: dict[Callable[..., Any], Callable[[Any], torch.Tensor]] = {
    nf4: lambda w: w.state.absmax * w.state.state2.absmax + w.state.code[:8],
    int8: lambda w: w.SCB + w.CB[0],
    in_containers: lambda w: w.scales["all"][0] + torch.cat(w.again["all"][1]),
    in_slots: lambda w: w.slotted.scale(),
}


class Quantised(nn.Module):
    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self.make = make
        self.weight = make(torch.randn(8, 8), self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = (x @ self.weight) * SCALES[self.make](self.weight)
        return made


def model(make: Callable[..., Any]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Quantised(make), Quantised(make), nn.Linear(8, 8))


def everything(net: nn.Module) -> list[torch.Tensor]:
    return [part for weight in net.parameters() for part in (weight, *carried_tensors(weight).values())]


@pytest.mark.parametrize("device_map", [{"": 0}, {"0": 0, "1": 1, "2": 0}, {"0": "cpu", "1": 0, "2": 1}])
@pytest.mark.parametrize("make", SCALES)
@torch.no_grad()
def test_what_a_parameter_carries_goes_with_it_and_comes_home(
    make: Callable[..., Any], device_map: dict[str, Any]
) -> None:
    net = model(make)
    want, before, weights = net(X), everything(net), list(net.parameters())
    values = [part.detach().clone() for part in before]
    if "cpu" in device_map.values():
        planner.dispatch(net, device_map, execution_map={"0": "cpu"})
    else:
        planner.dispatch(net, device_map)
    for index in (0, 1):
        home = torch.device(device_map.get(str(index), device_map.get("")))
        parts = [net[index].weight, *carried_tensors(net[index].weight).values()]
        assert {part.device for part in parts} == {home} and len(parts) > 1
        assert type(net[index].weight) is type(weights[index])
    first: Any = net[0].weight
    assert torch.allclose(net(X.to(first.device)).cpu(), want, atol=1e-6)
    # The caller's own parameters are as they were.
    assert {part.device for part in before if isinstance(part, Packed | Int8 | Scaled)} == {
        torch.device("cpu")
    }
    assert everything_of(weights[:2]) == [id(part) for part in before[:-2]]
    planner.undispatch(net)
    assert torch.allclose(net(X), want, atol=1e-6)
    assert {part.device for part in everything(net)} == {torch.device("cpu")}
    assert all(a.equal(b) for a, b in zip(everything(net), values, strict=True))


def everything_of(weights: list[Any]) -> list[int]:
    return [id(part) for weight in weights for part in (weight, *carried_tensors(weight).values())]


@pytest.mark.parametrize("make", SCALES)
@torch.no_grad()
def test_names_and_aliases_stay_one(make: Callable[..., Any]) -> None:
    net = planner.dispatch(model(make), {"": 0})
    weight: Any = net[0].weight
    if make is int8:
        assert weight.CB.data_ptr() == weight.data_ptr()
    if make is in_containers:
        assert weight.again is weight.scales and weight.scales["lock"] is threading.Lock
        assert isinstance(weight.scales["layer"], Quantised)
    if make is in_slots:
        assert weight.slotted.owner is weight


def test_a_failure_leaves_what_is_carried_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model(nf4)
    before = [(id(part), part.device) for part in everything(net)]
    plain = State.to

    def fail(self: State, device: Any) -> None:
        plain(self, device)
        if self is not net[0].weight.state and net[1].weight.state.absmax.equal(self.absmax.cpu()):
            raise MemoryError("no room")

    monkeypatch.setattr(State, "to", fail)
    with pytest.raises(MemoryError):
        planner.dispatch(net, {"": 0})
    assert [(id(part), part.device) for part in everything(net)] == before


def test_what_cannot_be_copied_is_named() -> None:
    net = model(in_slots)
    weight: Any = net[1].weight
    weight.held = {"scale": torch.ones(1), "self": (held := {})}
    held["tensor"], held["lock"] = torch.ones(1), Unique()
    held["lock"].tensor = torch.ones(1)
    with pytest.raises(OffloadError, match=r"'1\.weight'.*Scaled.*cannot be copied.*unique"):
        planner.dispatch(net, {"": 0})
    assert net[1].weight is weight and not hasattr(net, "hf_device_map")


class Unique:
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("unique")


OFFLOADS: dict[str, Callable[[nn.Module, str], Any]] = {
    "dispatch": lambda net, _: planner.dispatch(net, {"0": 0, "1": "cpu", "2": 0}),
    "dispatch_model": lambda net, _: planner.dispatch_model(net, {"0": 0, "1": "cpu", "2": 0}),
    "state_dict": lambda net, _: planner.dispatch_model(
        net, {"0": 0, "1": "cpu", "2": 0}, state_dict=dict(net.state_dict())
    ),
    "disk": lambda net, folder: planner.dispatch_model(
        net, {"0": 0, "1": "disk", "2": 0}, offload_dir=folder
    ),
    "cpu_offload": lambda net, _: planner.cpu_offload(net, 0),
    "disk_offload": planner.disk_offload,
    "attach": lambda net, _: planner.attach_align_device_hook(net, 0, offload=True),
    "attach with weights": lambda net, _: planner.attach_align_device_hook(
        net, 0, offload=True, weights_map=dict(net.state_dict())
    ),
    "attach_on_blocks": lambda net, _: planner.attach_align_device_hook_on_blocks(
        net, 0, {"2": True, "1": True}, dict(net.state_dict())
    ),
    "by hand": lambda net, _: planner.add_hook_to_module(net[1], planner.AlignDevicesHook(0, offload=True)),
}


@pytest.mark.parametrize("way", OFFLOADS)
@pytest.mark.parametrize("make", SCALES)
@torch.no_grad()
def test_offloading_is_refused_before_anything_is_changed(
    make: Callable[..., Any], way: str, tmp_path: Path
) -> None:
    net = model(make)
    order = [net[2], net[1], net[0]]
    net = nn.Sequential(order[2], order[1], order[0])
    want, before = net(X), [id(part) for part in everything(net)]
    with pytest.raises(OffloadError, match=r"cannot offload '.*weight'.*carries"):
        OFFLOADS[way](net, str(tmp_path))
    assert [id(part) for part in everything(net)] == before and net(X).equal(want)
    assert not any("_hf_hook" in vars(module) or "forward" in vars(module) for module in net.modules())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cls", [Flat, Telling])
def test_tensors_around_others_are_not_written_to_files(cls: Any, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False)
    net[0].weight = nn.Parameter(cls(net[0].weight.data), requires_grad=False)
    with pytest.raises(OffloadError, match=rf"'0\.weight'.*{cls.__name__}"):
        planner.disk_offload(net, str(tmp_path), "cpu")
    assert not list(tmp_path.iterdir()) and not is_offloaded(net[0].weight)


@pytest.mark.parametrize("make", SCALES)
def test_what_is_carried_is_counted_once_in_plans_and_by_the_checker(make: Callable[..., Any]) -> None:
    net = model(make)
    storages = {
        part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in everything(net)
    }
    size_bytes = sum(storages.values())
    assert planner.plan(net, max_memory={0: size_bytes}).device_map == {"": 0}
    assert not check(net, {"": 0}, {0: size_bytes})
    assert [finding.needed_bytes for finding in check(net, {"": 0}, {0: size_bytes - 1})] == [size_bytes]
    with pytest.raises(InfeasibleError):
        planner.plan(net, max_memory={0: size_bytes - 1}, mode="gpu_only")


def test_any_nest_of_objects_is_counted_alike_by_both() -> None:
    """Drawn: objects, containers, shared and viewed tensors, and circles."""
    for seed in range(200):
        net = nn.Module()
        net.weight = drawn(random.Random(seed))
        counted = describe_tensor(net.weight, "weight")[2]
        assert not check(net, {"": 0}, {0: counted}), seed
        assert len(check(net, {"": 0}, {0: counted - 1})) == 1, seed


def drawn(draw: random.Random) -> Any:
    weight: Any = Scaled(torch.zeros(draw.randint(1, 8)))
    tensors = [weight, weight.data, torch.zeros(8, device="meta")]
    holders: list[Any] = [weight]
    for index in range(draw.randint(1, 12)):
        kind = draw.randrange(7)
        if kind == 0:
            part: Any = torch.zeros(draw.randint(0, 9), dtype=draw.choice([torch.float32, torch.uint8]))
        elif kind == 1:
            part = draw.choice(tensors)[: draw.randint(0, 4)].detach()
        elif kind == 2:
            part = draw.choice(tensors)
        elif kind == 3:
            part = Telling(torch.zeros(draw.randint(1, 4)))
        elif kind == 4:
            part = draw.choice(holders)
        else:
            part = draw.choice(
                [dict, list, lambda: Slotted(torch.zeros(1), None), lambda: State(torch.zeros(2))]
            )()
        if isinstance(part, torch.Tensor):
            tensors.append(part)
        else:
            holders.append(part)
        holder = draw.choice(holders)
        if isinstance(holder, dict):
            holder[index] = part
        elif isinstance(holder, list):
            holder.append(part)
        elif isinstance(holder, Slotted):
            holder.owner = part
        else:
            setattr(holder, f"part{index}", part)
    return weight


def test_a_dispatched_model_is_planned_as_before() -> None:
    """Marks of placeholders lead to the model; nothing of that is theirs."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    plan = planner.plan(net, max_memory={0: 300, "cpu": 10_000})
    planner.dispatch(net, plan, outside="fetch")
    assert any(is_offloaded(p) for p in net.parameters())
    assert not check(net, {"": "cpu"}, {"cpu": 576}) and check(net, {"": "cpu"}, {"cpu": 575})
    assert planner.plan(net, max_memory={0: 300, "cpu": 10_000}).device_map == plan.device_map
    assert planner.plan(net, max_memory={0: 576}).device_map == {"": 0}


@torch.no_grad()
def test_a_single_parameter_is_moved_with_what_it_carries() -> None:
    net = model(nf4)
    want = net[0](X)
    with planner.align_module_device(net[0], 0):
        assert {part.device for part in everything(net[0])} == {torch.device(0)}
    assert {part.device for part in everything(net[0])} == {torch.device("cpu")}
    planner.set_module_tensor_to_device(net[0], "weight", 1)
    assert torch.allclose(net[0](X.to(1)).cpu(), want, atol=1e-6)
