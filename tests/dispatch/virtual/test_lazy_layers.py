"""Lazy layers have no shapes yet: whoever would place or offload them says so before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import AlignDevicesHook, InvalidTreeError
from rig import Accelerators

X = torch.linspace(-1, 1, 16).reshape(2, 8)
NAMES = {"1.weight", "2.0.running_mean"}


def with_parameters() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(8), nn.Sequential(nn.BatchNorm1d(8)))


def with_buffers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Sequential(nn.LazyBatchNorm1d(affine=False)))


Act = Callable[[Any, Path], Any]
ACTS: dict[str, Act] = {
    "dispatch": lambda model, _: planner.dispatch(model, {"0": 0, "1": 1, "2": 1}),
    "dispatch to one": lambda model, _: planner.dispatch(model, {"": 0}),
    "dispatch, offloaded": lambda model, _: planner.dispatch(model, {"0": 0, "1": "cpu", "2": "cpu"}),
    "dispatch_model": lambda model, _: planner.dispatch_model(model, {"0": 0, "1": 1, "2": 1}),
    "dispatch_model to one": lambda model, _: planner.dispatch_model(model, {"": 0}),
    "dispatch_model, disk": lambda model, folder: planner.dispatch_model(
        model, {"0": 0, "1": "disk", "2": "disk"}, offload_dir=folder
    ),
    "cpu_offload": lambda model, _: planner.cpu_offload(model, 0),
    "cpu_offload where it is": lambda model, _: planner.cpu_offload(model),
    "cpu_offload with buffers": lambda model, _: planner.cpu_offload(model, 0, offload_buffers=True),
    "disk_offload": lambda model, folder: planner.disk_offload(model, folder, 0),
    "align": lambda model, _: planner.attach_align_device_hook(model, 0),
    "align, offloaded": lambda model, _: planner.attach_align_device_hook(model, 0, offload=True),
    "blocks": lambda model, _: planner.attach_align_device_hook_on_blocks(model, {"": 0}),
    "blocks, offloaded": lambda model, _: planner.attach_align_device_hook_on_blocks(
        model,
        {"0": 0, "1": 0, "2": 0},
        {"0": True, "1": True, "2": True},
        weights_map={},
        offload_buffers=True,
    ),
    "execution device": lambda model, _: planner.attach_execution_device_hook(model, 0),
    "hook": lambda model, _: planner.add_hook_to_module(model, AlignDevicesHook(0, place_submodules=True)),
    "hook, offloaded": lambda model, _: planner.add_hook_to_module(
        model, AlignDevicesHook(0, offload=True, place_submodules=True)
    ),
    "one of several hooks": lambda model, _: planner.add_hook_to_module(
        model,
        planner.SequentialHook(planner.ModelHook(), AlignDevicesHook(0, place_submodules=True)),
        append=True,
    ),
    "one tensor": lambda model, _: [
        planner.set_module_tensor_to_device(model, name, 0) for name in lazy_names(model)
    ],
    "state dict": lambda model, _: dict(planner.state_dict(model)),
}


def lazy_names(model: nn.Module) -> list[str]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return [name for name, tensor in tensors if nn.parameter.is_lazy(tensor)]


@pytest.mark.parametrize("make", [with_parameters, with_buffers])
@pytest.mark.parametrize("act", ACTS)
def test_refused_by_name_and_nothing_changed(
    virtual_accelerators: Accelerators, tmp_path: Path, act: str, make: Callable[[], nn.Sequential]
) -> None:
    model = make()
    before = [dict(vars(module)) for module in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    with pytest.raises(InvalidTreeError, match="not initialised yet") as caught:
        ACTS[act](model, tmp_path)
    assert caught.value.name in NAMES and caught.value.name in str(caught.value)
    assert [dict(vars(module)) for module in model.modules()] == before
    assert all(now is old for now, old in zip((*model.parameters(), *model.buffers()), tensors, strict=True))
    assert {tensor.device.type for tensor in tensors} == {"cpu"} and not list(tmp_path.iterdir())
    assert model(X).shape == (2, 8)


def test_after_one_forward_they_are_layers_like_others(virtual_accelerators: Accelerators) -> None:
    model = with_parameters().eval()
    want = model(X)
    planner.cpu_offload(model, 0)
    assert torch.allclose(model(X).cpu(), want, atol=1e-6)


def test_what_moves_a_model_as_a_whole_takes_them(virtual_accelerators: Accelerators) -> None:
    model = with_parameters().eval()
    _, hook = planner.cpu_offload_with_hook(model, 0)
    got = model(X).cpu()
    hook.offload()
    planner.remove_hook_from_module(model)
    assert torch.allclose(model(X), got, atol=1e-6)


def test_a_model_without_tensors_can_be_offloaded() -> None:
    model = planner.cpu_offload(nn.Sequential(nn.ReLU()))
    assert model(X).equal(X.relu())
