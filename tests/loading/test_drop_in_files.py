"""What accelerate's loading functions take for a checkpoint, on our reading of files, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from drop_in_models import (
    HALF,
    WRITERS,
    Small,
    X,
    covered,
    on_meta,
    one_file,
    trained,
)
from safetensors.torch import save_file
from torch import nn

import planner


def test_safetensors_count_in_a_folder_with_both(tmp_path: Path) -> None:
    right, wrong = trained(), trained()
    one_file(right.state_dict(), tmp_path)
    torch.save(wrong.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {}}')
    loaded = planner.load_checkpoint_and_dispatch(on_meta(), tmp_path, device_map={"": "cpu"})
    assert torch.equal(loaded(X), right(X))


@pytest.mark.parametrize(
    "name", ["MODEL.SAFETENSORS", "model", "model.bin", "pytorch_model.bin", "model.ckpt", "model.json.pt"]
)
@pytest.mark.parametrize("kind", ["one_file", "one_pickle"])
def test_a_file_is_what_it_holds_whatever_its_name(
    kind: str, name: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model = trained()
    source = checkpoint(kind, model)
    path = tmp_path / "named" / name
    path.parent.mkdir()
    shutil.copy(source if source.is_file() else source / "model.safetensors", path)
    assert torch.equal(planner.load_checkpoint_and_dispatch(on_meta(), path)(X), model(X))
    if name == "pytorch_model.bin":
        assert torch.equal(planner.load_checkpoint_and_dispatch(on_meta(), path.parent)(X), model(X))


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_the_length_of_a_header_is_not_taken_for_the_beginning_of_a_pickle(
    start: bytes, tmp_path: Path
) -> None:
    state = trained().state_dict()
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    wanted = next(size for size in range(length, 2**20) if size.to_bytes(8, "little").startswith(start))
    path.write_bytes(
        wanted.to_bytes(8, "little")
        + content[8 : 8 + length]
        + b" " * (wanted - length)
        + content[8 + length :]
    )
    model = planner.load_checkpoint_and_dispatch(Small(), path, device_map={"": "cpu"})
    assert all(model.state_dict()[name].equal(value) for name, value in state.items())


def test_a_pickle_named_as_safetensors_is_read(tmp_path: Path) -> None:
    model = trained()
    torch.save(model.state_dict(), tmp_path / "model.safetensors.pt")
    path = tmp_path / "m.safetensors"
    os.rename(tmp_path / "model.safetensors.pt", path)
    assert torch.equal(planner.load_checkpoint_and_dispatch(on_meta(), path)(X), model(X))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("device_map", [None, {"": "cpu"}, {"": "disk"}])
def test_a_pickled_tensor_that_does_not_lie_in_order_has_its_values(
    device_map: Any, dtype: torch.dtype | None, legacy: bool, tmp_path: Path
) -> None:
    linear = nn.Linear(6, 4)
    grid = torch.randn(12, 8)
    state = {"weight": grid[::2, ::2].t(), "bias": grid[1:9:2, 3]}
    path = tmp_path / "x.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    folder = tmp_path / "offload"
    model = planner.load_checkpoint_and_dispatch(
        linear, path, device_map=device_map, dtype=dtype, offload_folder=folder
    )
    path.unlink()
    found = dict(planner.state_dict(model))
    assert all(found[name].equal(value.to(dtype or torch.float32)) for name, value in state.items())


def test_strides_do_not_make_much_of_a_small_pickle(tmp_path: Path) -> None:
    values = torch.zeros(4096)
    state = {f"x{i}": values.as_strided((64, 64), (1, 32)) for i in range(50)}
    torch.save(state, tmp_path / "x.bin")
    with pytest.raises(planner.CheckpointError, match="do not lie in order have 819200 bytes together"):
        planner.load_checkpoint_in_model(Small(), tmp_path / "x.bin")


@pytest.mark.parametrize("end", ["bin", "safetensors"])
@pytest.mark.parametrize("escape", ["up", "absolute", "link", "pipe"])
def test_an_index_names_files_inside_its_folder_only(escape: str, end: str, tmp_path: Path) -> None:
    outside, folder = tmp_path / f"outside.{end}", tmp_path / "checkpoint"
    folder.mkdir()
    state = trained().state_dict()
    torch.save(state, outside) if end == "bin" else save_file(state, outside)
    inside = folder / f"inside.{end}"
    name = {"up": f"../outside.{end}", "absolute": str(outside)}.get(escape, inside.name)
    if escape == "link":
        inside.symlink_to(outside)
    if escape == "pipe":
        os.mkfifo(inside)
    index = "model.safetensors.index.json" if end == "safetensors" else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"weight_map": dict.fromkeys(state, name)}))
    model = on_meta()
    for source in (folder, folder / index):
        with pytest.raises(planner.CheckpointError):
            planner.load_checkpoint_in_model(model, source)
    assert model.linear1.weight.is_meta


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "neither safetensors files"),
        ({"a.index.json": "{}", "b.index.json": "{}"}, "several indices"),
        ({"a.index.json": "{}"}, "must map names"),
        ({"a.index.json": '{"w": 3}'}, "must map names"),
        ({"a.index.json": "[]"}, "must hold a JSON object"),
        ({"a.index.json": '{"w": "x.bin"}'}, "files are missing: x.bin"),
        ({"pytorch_model.bin": "neither"}, "too few"),
        ({"pytorch_model.bin": ""}, "too few"),
    ],
)
def test_a_folder_that_holds_no_checkpoint_is_refused(
    files: Mapping[str, str], said: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(planner.CheckpointError, match=said):
        planner.load_checkpoint_in_model(Small(), tmp_path)


def test_what_makes_no_sense_is_refused_with_accelerates_kind_of_error(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint("one_pickle", trained())
    for bad in (
        {"device_map": "best"},
        {"device_map": {"": "disk"}},
        {"device_map": {"linear1": "cpu"}},
        {"device_map": {"": "cpu"}, "dtype": "int8"},
        {"device_map": {"": "cpu"}, "dtype": "float15"},
    ):
        with pytest.raises(ValueError):
            planner.load_checkpoint_and_dispatch(Small(), source, **bad)
    with pytest.raises(ValueError):
        planner.load_checkpoint_and_dispatch(Small(), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="from_pretrained"):
        planner.load_checkpoint_in_model(Small(), source, {"": "cpu"}, offload_8bit_bnb=True)
    with pytest.raises(ValueError, match=r"linear1\.weight"):
        planner.load_checkpoint_in_model(Small(), source, {"batchnorm": "cpu", "linear2": "cpu"})


@pytest.mark.parametrize("kind", WRITERS)
def test_what_does_not_fit_is_told_at_once_and_changes_nothing(
    kind: str, checkpoint: Callable[..., Path], empty: Path
) -> None:
    state = trained().state_dict()
    state["linear1.weight"] = torch.zeros(4, 9)
    state["linear2.bias"] = torch.zeros(5, dtype=torch.int64)
    source = checkpoint(kind, state)
    for make in (on_meta, Small):
        model = make()
        before = dict(model.named_parameters())
        values = {name: value.clone() for name, value in before.items() if not value.is_meta}
        with pytest.raises(planner.CheckpointError) as caught:
            planner.load_checkpoint_and_dispatch(
                model, source, device_map=covered(HALF), offload_folder=empty
            )
        assert len(caught.value.findings) == 2
        assert not os.listdir(empty) and not hasattr(model, "hf_device_map")
        assert all(value is before[name] for name, value in model.named_parameters())
        assert all(torch.equal(before[name], value) for name, value in values.items())
