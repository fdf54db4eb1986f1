"""Whatever a forward, or somebody in align_module_device, does to an offloaded weight, the next forward computes with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.dispatching.tensors.placeholder import is_offloaded

X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Writing(nn.Module):
    """Does something to its weight or buffer after it has computed with both."""

    def __init__(self, does: Callable[[Any], None]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.arange(1.0, 5.0))
        self.register_buffer("b", torch.ones(4))
        self.does = does

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.w.to(x.dtype) + self.b.to(x.dtype)
        with torch.no_grad():
            self.does(self)
        return y


def data_in_place(module: Any) -> None:
    module.w.data.mul_(0.5)


def data_of_a_part(module: Any) -> None:
    module.w.data[1:3] += 1


def other_data(module: Any) -> None:
    module.w.data = module.w.data * 0.5


def other_dtype(module: Any) -> None:
    module.w.data = module.w.data.to(torch.bfloat16) * 1.5


def other_shape(module: Any) -> None:
    module.w.data = (module.w.data.reshape(-1, 4) * 2).repeat(2, 1)[:2].clone()


def copy_into(module: Any) -> None:
    module.w.copy_(module.w * 2 + 1)


def set_to(module: Any) -> None:
    module.w.set_(module.w * 3)


def swapped(module: Any) -> None:
    module.w.data, module.b.data = module.b.data, module.w.data


def buffer_data(module: Any) -> None:
    module.b.data.add_(1)


def other_buffer_data(module: Any) -> None:
    module.b.data = module.b.data * 2


def not_a_number(module: Any) -> None:
    module.w.data[0] = torch.nan


def through_a_detached_one(module: Any) -> None:
    module.w.detach().data.mul_(0.5)


WRITES = [
    data_in_place, data_of_a_part, other_data, other_dtype, other_shape, copy_into, set_to, swapped, buffer_data,
    other_buffer_data, not_a_number, through_a_detached_one,
]  # fmt: skip


@pytest.mark.parametrize("is_trainable", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("runs_on", [0, "cpu"])
@pytest.mark.parametrize("does", WRITES)
@torch.no_grad()
def test_what_a_forward_writes(does: Callable[[Any], None], runs_on: Any, is_trainable: bool) -> None:
    plain = nn.Sequential(Writing(does), nn.Identity()).requires_grad_(is_trainable)
    model = copy.deepcopy(plain)
    planner.dispatch(model, {"0": "cpu", "1": 0}, execution_map={"0": runs_on}, offload_buffers=True)
    for _ in range(3):
        want = plain(X)
        assert torch.allclose(model(X), want, equal_nan=True)
    assert is_offloaded(model[0].w) == (runs_on == 0)
    assert model[0].w.dtype == plain[0].w.dtype and model[0].w.shape == plain[0].w.shape
    planner.undispatch(model)
    for mine, its in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.allclose(mine, its, equal_nan=True) and mine.dtype == its.dtype


@pytest.mark.parametrize("runs_on", [0, "cpu"])
@pytest.mark.parametrize("does", [data_in_place, other_data, copy_into, other_dtype, buffer_data])
@torch.no_grad()
def test_what_a_forward_writes_into_weights_from_files(
    does: Callable[[Any], None], runs_on: Any, tmp_path: Path
) -> None:
    plain = nn.Sequential(Writing(does), nn.Identity()).requires_grad_(False)
    model = planner.disk_offload(
        copy.deepcopy(plain), tmp_path, execution_device=runs_on, offload_buffers=True
    )
    for _ in range(3):
        want = plain(X)
        assert model(X).equal(want)


@pytest.mark.parametrize("runs_on", [0, "cpu"])
@torch.no_grad()
def test_tied_weights_stay_tied(runs_on: Any) -> None:
    def build() -> nn.Sequential:
        made = nn.Sequential(Writing(other_dtype), Writing(data_in_place), nn.Identity()).requires_grad_(
            False
        )
        made[1].w = made[0].w
        return made

    plain, model = build(), build()
    planner.dispatch(model, {"0": "cpu", "1": "cpu", "2": 0}, execution_map={"0": runs_on, "1": runs_on})
    for _ in range(3):
        assert model(X).equal(plain(X))
    assert model[0].w is model[1].w and model[1].w.dtype == torch.bfloat16
    planner.undispatch(model)
    assert model[0].w is model[1].w and model[0].w.equal(plain[0].w)


def cast(module: Any) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


def cast_exactly(module: Any) -> None:
    module.w.data = module.w.data.double()


def freeze(module: Any) -> None:
    module.w.requires_grad_(False)


def thaw(module: Any) -> None:
    module.w.requires_grad_(True)


def replace(module: Any) -> None:
    module.w = nn.Parameter(module.w * 2, requires_grad=False)


def mark(module: Any) -> None:
    module.w.scale = 2.0


# What a buffer does to a weight wants both in one place, and buffers stay where they are.
ELSEWHERE = [does for does in WRITES if does is not swapped]


@pytest.mark.parametrize("lies_on", [0, "cpu"])
@pytest.mark.parametrize("goes_to", [1, "cpu"])
@pytest.mark.parametrize("does", [*ELSEWHERE, cast, cast_exactly, freeze, thaw, replace, mark])
@torch.no_grad()
def test_what_is_written_while_aligned_elsewhere(
    does: Callable[[Any], None], goes_to: Any, lies_on: Any
) -> None:
    plain = nn.Sequential(Writing(lambda _: None), nn.Linear(4, 4)).requires_grad_(does is freeze)
    model = planner.dispatch(copy.deepcopy(plain), {"0": lies_on, "1": 1}, execution_map={"0": lies_on})
    does(plain[0])
    with planner.align_module_device(model[0], goes_to):
        does(model[0])
    mine, its = model[0].w, plain[0].w
    assert (mine.dtype, mine.shape, mine.requires_grad) == (its.dtype, its.shape, its.requires_grad)
    assert torch.allclose(mine.cpu(), its, equal_nan=True) and vars(mine) == vars(its)
    assert torch.allclose(model(X), plain(X), equal_nan=True)


def test_a_gradient_that_arrives_while_aligned_elsewhere() -> None:
    plain = nn.Linear(4, 4)
    model = planner.dispatch(copy.deepcopy(plain), {"": 0})
    for _ in range(2):
        plain(X).sum().backward()
        with planner.align_module_device(model, 1):
            model(X.to(1)).sum().backward()
    assert torch.allclose(model.weight.grad.cpu(), plain.weight.grad)


@pytest.mark.parametrize("where", [0, "cpu"])
@pytest.mark.parametrize("does", [*WRITES, cast, cast_exactly, freeze, thaw])
@torch.no_grad()
def test_what_is_written_while_aligned(does: Callable[[Any], None], where: Any) -> None:
    plain = nn.Sequential(Writing(lambda _: None), nn.Identity()).requires_grad_(does is freeze)
    model = planner.cpu_offload(copy.deepcopy(plain), where)
    does(plain[0])
    with planner.align_module_device(model[0]):
        does(model[0])
    want = plain[0].w
    assert model[0].w.dtype == want.dtype and model[0].w.shape == want.shape
    assert model[0].w.requires_grad == want.requires_grad
    assert torch.allclose(model(X), plain(X), equal_nan=True)
    assert torch.allclose(planner.state_dict(model)["0.w"], want, equal_nan=True)


@pytest.mark.parametrize("does", [*WRITES, cast, cast_exactly, freeze, thaw])
@torch.no_grad()
def test_what_is_written_while_a_module_that_is_not_offloaded_is_elsewhere(
    does: Callable[[Any], None],
) -> None:
    plain, module = (Writing(lambda _: None).requires_grad_(does is freeze) for _ in range(2))
    kept = module.w
    does(plain)
    with planner.align_module_device(module, 0):
        assert module.w.device == torch.device(0)
        does(module)
    assert module.w.device.type == "cpu" and (module.w is kept or does not in (cast, cast_exactly))
    assert module.w.dtype == plain.w.dtype and module.w.requires_grad == plain.w.requires_grad
    assert torch.allclose(module.w, plain.w, equal_nan=True)


@torch.no_grad()
def test_a_weight_whose_data_is_only_read_is_not_kept_in_memory(tmp_path: Path) -> None:
    plain = nn.Sequential(Writing(lambda module: module.w.data.sum()), nn.Identity()).requires_grad_(False)
    model = planner.disk_offload(copy.deepcopy(plain), tmp_path, execution_device=0)
    assert model(X).equal(plain(X)) and model[0].w.kept is None


@torch.no_grad()
def test_a_weight_that_was_brought_in_is_a_parameter_like_any_other() -> None:
    seen: list[bool] = []

    def does(module: Any) -> None:
        made = nn.Parameter(module.w, requires_grad=False)
        twin = copy.deepcopy(module.w)
        seen.append(isinstance(made, nn.Parameter) and type(twin) is nn.Parameter)
        module.__dict__["kept"] = module.w.detach()
        seen.append(isinstance(module.w, nn.Parameter) and not isinstance(module.kept, nn.Parameter))

    plain = nn.Sequential(Writing(does), nn.Identity()).requires_grad_(False)
    model = planner.dispatch(copy.deepcopy(plain), {"0": "cpu", "1": 0})
    assert model(X).equal(plain(X)) and all(seen) and len(seen) == 4


def count_up(module: Any, name: str) -> Any:
    tensor = getattr(module, name)
    tensor.calls = getattr(tensor, "calls", 0) + 1
    return tensor.calls


def scale_up(module: Any, name: str) -> Any:
    tensor = getattr(module, name)
    tensor.scale = getattr(tensor, "scale", torch.ones(4, device=tensor.device)) * 2
    return tensor.scale


def switch(module: Any, name: str) -> Any:
    tensor = getattr(module, name)
    if hasattr(tensor, "seen"):
        del tensor.seen
        return 1.0
    tensor.seen = True
    return 2.0


def mark_another(module: Any, name: str) -> Any:
    calls = getattr(module.b, "calls", 0) + 1
    module.b = module.b + 1
    module.b.calls = calls
    return calls


class Marking(nn.Module):
    """Computes with what it has set on a tensor of its own."""

    def __init__(self, does: Callable[[Any, str], Any], name: str) -> None:
        super().__init__()
        self.w, self.does, self.name = nn.Parameter(torch.arange(1.0, 5.0), requires_grad=False), does, name
        self.register_buffer("b", torch.ones(4))

    def forward(self, x: torch.Tensor) -> Any:
        return (x * self.w + self.b) * self.does(self, self.name)


@pytest.mark.parametrize("where", [0, "cpu", "disk"])
@pytest.mark.parametrize("name", ["w", "b"])
@pytest.mark.parametrize("does", [count_up, scale_up, switch, mark_another])
def test_attributes_that_a_forward_sets_on_its_tensors(
    does: Callable[[Any, str], Any], name: str, where: Any, tmp_path: Path
) -> None:
    plain = nn.Sequential(Marking(does, name), nn.Identity())
    model = copy.deepcopy(plain)
    if where == "disk":
        planner.disk_offload(model, tmp_path, execution_device=0, offload_buffers=True)
    else:
        planner.dispatch(model, {"0": "cpu"}, execution_map={"0": where}, offload_buffers=True)
    plain.to(0)
    for _ in range(3):
        assert model(X).equal(plain(X.to(0)).cpu())
    planner.undispatch(model)
    assert vars(model[0].w).keys() == vars(plain[0].w).keys()
