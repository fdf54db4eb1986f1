"""accelerate's loading functions on two virtual accelerators, beside accelerate's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import load_checkpoint_in_model as their_load_in_model
from safetensors.torch import save_file
from torch import nn

import planner
from rig import Accelerators

X = torch.randn(2, 4)
MAPS: dict[str, Any] = {
    "two": {"0": 0, "1": 0, "2": 1, "3": 1},
    "all": {"0": 0, "1": "cpu", "2": "disk", "3": 1},
    "offloaded": {"0": 1, "1": "disk", "2": "cpu", "3": "disk"},
}


def blocks() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 4)
    ).eval()


@pytest.fixture(params=["safetensors", "bin"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, nn.Module]:
    model = blocks()
    path = tmp_path / f"weights.{request.param}"
    if request.param == "bin":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path, metadata={"format": "pt"})
    return path, model


@pytest.mark.parametrize("options", [{}, {"offload_buffers": True}, {"force_hooks": True}], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS)
def test_outputs_are_those_of_the_model(
    device_map: dict[str, Any],
    device: str,
    options: dict[str, bool],
    checkpoint: tuple[Path, nn.Module],
    virtual_accelerators: Accelerators,
    tmp_path: Path,
) -> None:
    path, model = checkpoint
    loaded = planner.load_checkpoint_and_dispatch(
        blocks().to(device), path, device_map, offload_folder=tmp_path / "rest", **options
    )
    for _ in range(2):
        assert torch.equal(loaded(X.to("cpu")).cpu(), model(X))
    assert (tmp_path / "rest").exists() is (path.suffix == ".bin" and "disk" in device_map.values())
    kept = planner.undispatch(loaded)
    assert torch.equal(kept.cpu()(X), model(X))


@pytest.mark.parametrize("word", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_a_map_in_a_word_is_the_one_that_is_inferred(
    word: str, checkpoint: tuple[Path, nn.Module], virtual_accelerators: Accelerators, tmp_path: Path
) -> None:
    path, model = checkpoint
    budgets = {0: 500, 1: 500, "cpu": 300}
    loaded = planner.load_checkpoint_and_dispatch(
        blocks().to("meta"), path, word, max_memory=budgets, offload_folder=tmp_path / "rest"
    )
    assert torch.equal(loaded(X).cpu(), model(X))
    spread = budgets if word == "sequential" else None
    if spread is None:
        spread = planner.get_balanced_memory(blocks(), budgets, low_zero=word == "balanced_low_0")
    assert loaded.hf_device_map == planner.infer_auto_device_map(blocks(), spread)


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS)
def test_tensors_lie_where_accelerate_puts_them(
    device_map: dict[str, Any],
    dtype: Any,
    checkpoint: tuple[Path, nn.Module],
    virtual_accelerators: Accelerators,
    tmp_path: Path,
) -> None:
    path, _ = checkpoint
    if path.suffix == ".safetensors":
        pytest.skip("safetensors takes numbers of devices for those of CUDA")
    theirs, ours = blocks(), blocks()
    options = {"device_map": device_map, "dtype": dtype, "offload_buffers": True}
    their_load_in_model(theirs, str(path), **options, offload_folder=tmp_path / "theirs")
    planner.load_checkpoint_in_model(ours, path, **options, offload_folder=tmp_path / "ours")
    for (name, found), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert (found.dtype, found.device) == (expected.dtype, expected.device), name
        assert found.is_meta or torch.equal(found.cpu(), expected.cpu()), name


def test_a_pickle_may_be_written_over_while_parts_of_it_are_offloaded(
    virtual_accelerators: Accelerators, tmp_path: Path
) -> None:
    model, path = blocks(), tmp_path / "weights.bin"
    torch.save(model.state_dict(), path)
    loaded = planner.load_checkpoint_and_dispatch(
        blocks(), path, MAPS["all"], offload_folder=tmp_path / "rest"
    )
    torch.save({"other": torch.zeros(1)}, path)
    assert torch.equal(loaded(X).cpu(), model(X))


def test_what_was_left_on_disk_is_dispatched_from_there(
    checkpoint: tuple[Path, nn.Module], virtual_accelerators: Accelerators, tmp_path: Path
) -> None:
    path, model = checkpoint
    loaded, folder = blocks().to("meta"), tmp_path / "rest"
    planner.load_checkpoint_in_model(loaded, path, MAPS["all"], offload_folder=folder)
    planner.dispatch_model(loaded, MAPS["all"], offload_dir=folder)
    assert torch.equal(loaded(X).cpu(), model(X))
    assert not folder.exists() or path.suffix == ".bin"


def test_disk_offload_runs_on_an_accelerator_from_the_files(
    checkpoint: tuple[Path, nn.Module], virtual_accelerators: Accelerators, tmp_path: Path
) -> None:
    path, model = checkpoint
    loaded = blocks().to("meta")
    planner.load_checkpoint_in_model(loaded, path, {"": "disk"}, offload_folder=tmp_path)
    planner.disk_offload(loaded, tmp_path, execution_device=0)
    assert torch.equal(loaded(X).cpu(), model(X))
    assert (tmp_path / "index.json").exists() is (path.suffix == ".bin")
    assert all(row.endswith((".dat", ".bin", ".json", ".safetensors")) for row in os.listdir(tmp_path))
