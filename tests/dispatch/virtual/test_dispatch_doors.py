"""What a map may say, on two accelerators: the same to `dispatch`, `dispatch_model` and `check`."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.errors import InvalidDevicesError, InvalidInputError, PlanMismatchError, PlannerError
from rig import Accelerators


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.fc(x))


KEYS = ("fc.weight", "fc.bias", "norm.weight", "norm.bias")
MAPS = [dict(zip(KEYS, devices, strict=True)) for devices in itertools.product((0, 1, "cpu"), repeat=4)]


@pytest.mark.parametrize("device_map", MAPS, ids=str)
def test_a_module_on_several_devices_is_refused_by_all_or_taken_by_all(
    virtual_accelerators: Accelerators, device_map: dict[str, Any]
) -> None:
    is_split = "split-module" in {finding.rule for finding in planner.check(Half(), device_map)}
    for call in (planner.dispatch, planner.dispatch_model):
        model = Half()
        weight = model.fc.weight
        if is_split:
            with pytest.raises(PlanMismatchError, match="splits one"):
                call(model, device_map)
            assert model.fc.weight is weight and not hasattr(model, "hf_device_map")
        else:
            call(model, device_map)


@pytest.mark.parametrize("device", ["virtual:1", "virtual", torch.device("cpu"), "0", "cuda:1"])
def test_a_back_end_of_torchs_own_naming_is_a_number_at_every_door(
    virtual_accelerators: Accelerators, device: Any
) -> None:
    model = Half()
    plan = planner.plan(model, max_memory={device: 10_000}, headroom={device: 1}, pin={"fc": device})
    mapped = planner.infer_auto_device_map(model, {device: 10_000, "disk": 0})
    assert set(plan.device_map.values()) == set(mapped.values())
    assert planner.check(model, {"": device}, {next(iter(mapped.values())): 10_000}) == ()
    assert planner.dispatch(model, {"": device}).hf_device_map == {"": device}


def test_two_spellings_of_such_a_device_are_one(virtual_accelerators: Accelerators) -> None:
    twice = {"virtual:1": 5, 1: 5}
    for call in (
        lambda: planner.plan(Half(), max_memory=twice),
        lambda: planner.plan_many(Half(), [twice]),
        lambda: planner.plan(Half(), max_memory={0: 5000, 1: 5000}, headroom=twice),
        lambda: planner.infer_auto_device_map(Half(), twice),
        lambda: planner.check(Half(), {"": 0}, twice),
    ):
        with pytest.raises(PlannerError):
            call()


@pytest.mark.parametrize("device", [2, 7, "virtual:5", 10**8])
def test_room_for_staging_on_a_device_that_is_not_there(
    virtual_accelerators: Accelerators, device: Any
) -> None:
    with pytest.raises(PlanMismatchError, match="this machine has 2"):
        planner.dispatch(Half(), {"fc": 0, "norm": 1}, staging_bytes={device: 5})


@pytest.mark.parametrize("device", [2, 256, 10**8, "virtual:5", "virtual:256"])
def test_helpers_name_a_device_that_is_not_there(virtual_accelerators: Accelerators, device: Any) -> None:
    model = Half()
    for call in (
        lambda: planner.send_to_device([torch.ones(1)], device),
        lambda: planner.set_module_tensor_to_device(model, "fc.weight", device),
        lambda: planner.attach_execution_device_hook(model, device),
    ):
        with pytest.raises(InvalidDevicesError):
            call()
    assert not hasattr(model, "_hf_hook") and model.fc.weight.device.type == "cpu"


@pytest.mark.parametrize("outside", ["Fetch", "", None, 1, ["fetch"]])
def test_no_word_for_readers_outside(virtual_accelerators: Accelerators, outside: Any) -> None:
    with pytest.raises(InvalidInputError, match="'raise' or 'fetch'"):
        planner.dispatch(Half(), {"fc": "cpu", "norm": 0}, outside=outside)


@pytest.mark.parametrize(
    ("name", "value"), [(5, None), (None, None), (["fc.weight"], None), ("fc.weight", "x")]
)
def test_what_is_no_tensor_of_a_module(virtual_accelerators: Accelerators, name: Any, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"must be a name|is no tensor"):
        planner.set_module_tensor_to_device(Half(), name, 0, value=value)


@pytest.mark.parametrize("make", [torch.jit.script, lambda part: torch.jit.trace(part, torch.ones(2, 4))])
def test_scripted_parts_run_on_one_device_and_are_refused_on_several(
    virtual_accelerators: Accelerators, make: Any
) -> None:
    model, x = nn.Sequential(make(nn.Linear(4, 4)), nn.Linear(4, 4)), torch.ones(2, 4)
    want = model(x)
    for device_map in ({"0": 0, "1": 1}, {"0": "cpu", "1": 0}):
        with pytest.raises(PlanMismatchError, match="'0' is a"):
            planner.dispatch(model, device_map)
        found = planner.verify(model, device_map, x)
        assert found.runs is False and "TorchScript" in str(found)
    planner.dispatch(model, {"": 1})
    assert torch.allclose(model(x.to(1)).cpu(), want)
    assert torch.allclose(planner.undispatch(model).cpu()(x), want)
