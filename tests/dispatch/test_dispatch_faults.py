"""What breaks accelerate's dispatch breaks ours with a clear error, or not at all: rows that need no accelerator.

`cpu_offload(model, "cpu")` offloads on a machine without one: between forwards, weights are not in their modules.
"""

from __future__ import annotations

import json
import os
import resource
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import planner
from planner import InvalidInputError, InvalidTreeError, OffloadError, PlanMismatchError
from planner.dispatching.tensors.placeholder import is_offloaded
from rig.faults import Verdict, judge


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(self.a(x)))


X = torch.ones(2, 3)


@torch.no_grad()
def expected() -> torch.Tensor:
    return Net()(X)


def on_disk(folder: Path) -> nn.Module:
    return planner.disk_offload(Net(), folder, "cpu")


# Files.


@pytest.mark.parametrize("name", ["../x", "/abs/x", "a/b", "..", "", "nul\0", "a\\b"])
def test_names_that_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    with pytest.raises(OffloadError, match="plain file name"):
        planner.offload_weight(torch.ones(2), name, folder)
    with pytest.raises(OffloadError, match="plain file name"):
        planner.offload_state_dict(folder, {name: torch.ones(2)})
    assert [path.name for path in tmp_path.rglob("*")] == ["inner"]


def test_a_link_in_place_of_a_data_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "w.dat").symlink_to(target)
    planner.offload_weight(torch.ones(2), "w", tmp_path)
    assert target.read_text() == "precious" and not (tmp_path / "w.dat").is_symlink()


@pytest.mark.parametrize("fault", ["truncated", "longer", "deleted"])
def test_a_data_file_that_does_not_fit_its_row(fault: str, tmp_path: Path) -> None:
    model = on_disk(tmp_path)
    file = tmp_path / "a.weight.dat"
    if fault == "deleted":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-4] if fault == "truncated" else file.read_bytes() + b"\0")
    with pytest.raises(OffloadError, match=r"a\.weight") as caught, torch.no_grad():
        model(X)
    assert caught.value.name == "a.weight"
    assert is_offloaded(model.a.weight)


def test_a_folder_named_relative_to_where_the_process_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = on_disk(Path("weights"))
    monkeypatch.chdir("/")
    with torch.no_grad():
        assert model(X).equal(expected())


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "\xff", "[" * 100_000])
def test_a_file_that_is_no_index(text: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidInputError, match=r"index\.json"):
        planner.OffloadedWeightsLoader(save_folder=tmp_path)
    with pytest.raises(InvalidInputError, match=r"index\.json"):
        planner.offload_state_dict(tmp_path, {"w": torch.ones(1)})


def test_an_index_without_a_weight_is_noticed_at_dispatch(tmp_path: Path) -> None:
    state = Net().state_dict()
    del state["b.bias"]
    planner.offload_state_dict(tmp_path, state)
    model = Net()
    with pytest.raises(OffloadError, match=r"b\.bias"):
        planner.disk_offload(model, tmp_path, "cpu")
    assert not any(is_offloaded(p) for p in model.parameters()) and model(X).equal(expected())


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e5m2, torch.float8_e8m0fnu],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_every_dtype_and_shape_comes_back(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    weight = torch.randint(0, 2, shape).to(dtype)
    index = planner.offload_weight(weight, "w", tmp_path, {})
    assert index == {"w": {"dtype": str(dtype).removeprefix("torch."), "shape": list(shape)}}
    found = planner.load_offloaded_weight(tmp_path / "w.dat", json.loads(json.dumps(index))["w"])
    assert found.dtype == dtype and found.shape == shape
    assert found.view(torch.uint8).equal(weight.view(torch.uint8)) if shape else found.equal(weight)


def write_too_much(folder: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    try:
        planner.offload_weight(torch.ones(1 << 16), "w", folder)
    finally:
        assert not os.path.exists(os.path.join(folder, "w.dat"))


def test_no_room_on_the_disk_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    outcome = judge(write_too_much, str(tmp_path), clean_errors=(OffloadError,))
    assert outcome.verdict is Verdict.CLEAN and outcome.error == "OffloadError", outcome


# Maps and models.


def test_a_map_that_does_not_fit_changes_nothing() -> None:
    model = Net()
    for device_map, words in (
        ({"a": "cpu", "norm": "cpu"}, "'b.weight'"),
        ({"": "cpu", "c": "cpu"}, "'c'"),
        ({"": 99}, "99"),
    ):
        with pytest.raises(PlanMismatchError, match=words):
            planner.dispatch(model, device_map)
    assert "hf_device_map" not in vars(model)


def test_a_module_in_a_circle() -> None:
    model = Net()
    model.a.back = model
    with pytest.raises(InvalidTreeError):
        planner.dispatch(model, {"": "cpu"})


def test_a_deep_model() -> None:
    model: nn.Module = nn.Linear(2, 2)
    for _ in range(3000):
        outer = nn.Module()
        outer.inner = model
        model = outer
    planner.dispatch(model, {"": "cpu"})
    planner.undispatch(model)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = self.one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x))


def test_one_module_under_two_names() -> None:
    model, plain = planner.cpu_offload(Twice(), "cpu"), Twice()
    plain.load_state_dict(dict(planner.state_dict(model)))
    with torch.no_grad():
        assert model(X).equal(plain(X))


# Running.


def test_a_weight_that_is_used_without_its_module() -> None:
    """torch computes garbage with a tensor on the meta device; accelerate hands one out."""
    model = planner.cpu_offload(Net(), "cpu")
    with pytest.raises(OffloadError, match=r"a\.weight"):
        functional.linear(X, model.a.weight)
    for _ in range(20):
        with pytest.raises(OffloadError):
            X @ model.a.weight.T


def test_an_error_inside_a_forward_leaves_no_weight() -> None:
    model = planner.cpu_offload(Net(), "cpu")
    for module in (model.a, model.norm, model.b):
        handle = module.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(X)
        handle.remove()
        assert all(is_offloaded(p) for p in model.parameters())
    with torch.no_grad():
        assert model(X).equal(expected())


def test_threads() -> None:
    model, want, wrong = planner.cpu_offload(Net(), "cpu"), expected(), []

    @torch.no_grad()
    def work() -> None:
        wrong.extend(1 for _ in range(200) if not model(X).equal(want))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)
    assert all(is_offloaded(p) for p in model.parameters())


def test_dispatching_twice_and_removing_hooks() -> None:
    model = planner.cpu_offload(Net(), "cpu")
    planner.cpu_offload(model, "cpu", offload_buffers=True)
    with torch.no_grad():
        assert model(X).equal(expected())
    assert is_offloaded(model.norm.running_mean)
    planner.remove_hook_from_submodules(model)
    assert not any(is_offloaded(t) for t in (*model.parameters(), *model.buffers()))
    with torch.no_grad():
        assert model(X).equal(expected())


def test_a_gradient_that_would_be_lost() -> None:
    model = planner.cpu_offload(Net(), "cpu")
    with pytest.raises(OffloadError, match="trainable"):
        model(X).sum().backward()


@dataclass
class Batch:
    x: torch.Tensor


def test_containers_that_accelerate_does_not_move() -> None:
    batch = planner.send_to_device(Batch(X), "meta")
    assert batch.x.device.type == "meta"
    table = planner.send_to_device(defaultdict(list, x=X), "meta")
    assert table["x"].device.type == "meta" and table["new"] == []


class Int8(nn.Parameter):
    """A parameter with its scales as an attribute."""

    def __new__(cls, data: torch.Tensor, requires_grad: bool = True, scales: Any = None) -> Any:
        made = torch.Tensor._make_subclass(cls, data, requires_grad)
        made.scales = scales
        return made


def test_a_tensor_that_carries_others_names_its_class() -> None:
    model = Net().requires_grad_(False)
    model.a.weight = Int8(model.a.weight.data, requires_grad=False, scales=torch.ones(4))
    with pytest.raises(OffloadError, match=r"'a\.weight'.*Int8 carries scales"):
        planner.cpu_offload(model, "cpu")
    assert not any(is_offloaded(p) for p in model.parameters())


def test_a_wrong_hook_by_hand() -> None:
    model = Net()
    with pytest.raises(OffloadError, match="weights_map does not have it"):
        planner.add_hook_to_module(
            model.a, planner.AlignDevicesHook("cpu", offload=True, weights_map={"weight": torch.ones(4, 3)})
        )
    assert "forward" not in vars(model.a)
