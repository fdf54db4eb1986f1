"""Folders that weights are left in and written to, by accelerate's functions on our reading of files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drop_in_models import (
    HALF,
    Small,
    X,
    covered,
    on_meta,
    one_file,
    trained,
)
from torch import nn

import planner


def test_a_folder_that_cannot_be_written_to_stays_as_it_was(
    checkpoint: Callable[..., Path], empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("one_pickle", trained())
    (empty / "index.json").write_text("{}")
    model = Small()

    def full(_folder: object) -> Any:
        return type("Usage", (), {"free": 10})

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", full)
        with pytest.raises(planner.InvalidInputError, match="10 B free"):
            planner.load_checkpoint_and_dispatch(
                model, source, device_map=covered(HALF), offload_folder=empty
            )
    with monkeypatch.context() as patch:

        def broken(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "write_bytes", broken)
        with pytest.raises(planner.OffloadError, match="No space left"):
            planner.load_checkpoint_and_dispatch(
                model, source, device_map=covered(HALF), offload_folder=empty
            )
    with pytest.raises(planner.InvalidInputError, match="cannot be used"):
        planner.load_checkpoint_and_dispatch(
            model, source, device_map=covered(HALF), offload_folder=empty / "index.json" / "inside"
        )
    assert os.listdir(empty) == ["index.json"] and (empty / "index.json").read_text() == "{}"
    assert not hasattr(model, "hf_device_map")


def test_a_folder_is_as_it_was_where_the_model_cannot_be_written_to(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = checkpoint("one_pickle", trained()), tmp_path / "rest"
    first = trained()
    torch.save(first.state_dict(), tmp_path / "first.bin")
    earlier = planner.load_checkpoint_and_dispatch(
        on_meta(), tmp_path / "first.bin", device_map={"batchnorm": "cpu", "": "disk"}, offload_folder=folder
    )

    def seen(where: Path) -> dict[str, bytes]:
        return {each.name: each.read_bytes() for each in where.iterdir()}

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = seen(folder)
    with monkeypatch.context() as patch:
        patch.setattr("planner.loading.load.commit", interrupted)
        for where in (folder, tmp_path / "other"):
            with pytest.raises(KeyboardInterrupt):
                planner.load_checkpoint_and_dispatch(
                    on_meta(), source, device_map={"": "disk"}, offload_folder=where
                )
    assert seen(folder) == before and not (tmp_path / "other").exists()
    assert torch.equal(earlier(X), first(X))


def test_two_models_in_one_folder_keep_their_weights(tmp_path: Path, empty: Path) -> None:
    models = [trained(), trained()]
    loaded = []
    for number, model in enumerate(models):
        torch.save(model.state_dict(), tmp_path / f"{number}.bin")
        loaded.append(
            planner.load_checkpoint_and_dispatch(
                on_meta(), tmp_path / f"{number}.bin", device_map={"": "disk"}, offload_folder=empty
            )
        )
    for model, found in zip(models, loaded, strict=True):
        assert torch.equal(found(X), model(X))


def test_a_pickle_may_be_written_over_by_the_model_that_came_from_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    model = trained()
    torch.save(model.state_dict(), path)
    loaded = planner.load_checkpoint_and_dispatch(on_meta(), path)
    torch.save(loaded.state_dict(), path)
    assert torch.equal(loaded(X), model(X))
    assert torch.equal(planner.load_checkpoint_and_dispatch(on_meta(), path)(X), model(X))


def test_safetensors_may_be_saved_into_the_folder_that_was_loaded_from(tmp_path: Path) -> None:
    model = trained()
    one_file(model.state_dict(), tmp_path)
    loaded = planner.load_checkpoint_and_dispatch(on_meta(), tmp_path, device_map=covered(HALF))
    one_file(planner.get_state_dict_offloaded_model(loaded), tmp_path)
    assert torch.equal(loaded(X), model(X))
    assert torch.equal(planner.load_checkpoint_and_dispatch(on_meta(), tmp_path)(X), model(X))


@pytest.mark.parametrize("offload_buffers", [False, True])
def test_what_was_left_on_disk_is_found_there_again(
    offload_buffers: bool, checkpoint: Callable[..., Path], empty: Path
) -> None:
    model = trained()
    source = checkpoint("several_files", model)
    rest = {"offload_buffers": offload_buffers}

    dispatched = on_meta()
    planner.load_checkpoint_in_model(dispatched, source, covered(HALF), **rest)
    assert dispatched.batchnorm.weight.is_meta
    planner.dispatch_model(dispatched, covered(HALF), **rest)
    assert torch.equal(dispatched(X), model(X))
    assert torch.equal(planner.undispatch(dispatched)(X), model(X))

    skeleton = on_meta()
    planner.load_checkpoint_in_model(skeleton, source, {"": "disk"}, **rest)
    assert torch.equal(planner.disk_offload(skeleton, empty, **rest)(X), model(X))

    in_memory = Small().eval()
    planner.load_checkpoint_in_model(in_memory, source)
    assert torch.equal(planner.disk_offload(in_memory, empty, **rest)(X), model(X))
    assert not os.listdir(empty)


def _in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.mul_(2)


def _unseen(weight: nn.Parameter) -> None:
    weight.data.mul_(2)


def _exchanged(weight: nn.Parameter) -> None:
    weight.data = weight.data * 2


def test_what_was_left_on_disk_is_found_there_although_others_were_written_to(
    checkpoint: Callable[..., Path], empty: Path
) -> None:
    source = trained()
    model, device_map = on_meta(), {"": "cpu", "linear2": "disk"}
    planner.load_checkpoint_in_model(model, checkpoint("one_file", source), device_map)
    with torch.no_grad():
        for changed in (model, source):
            changed.linear1.weight.mul_(2)
    planner.dispatch_model(model, device_map, offload_dir=empty)
    assert model(X).equal(source(X))
    assert not list(empty.iterdir())


@pytest.mark.parametrize("change", [_in_place, _unseen, _exchanged])
def test_weights_that_are_others_by_now_are_written(
    change: Callable[[nn.Parameter], None], checkpoint: Callable[..., Path], empty: Path
) -> None:
    source = checkpoint("one_file", trained())
    model = Small().eval()
    planner.load_checkpoint_in_model(model, source)
    change(model.linear2.weight)
    expected = model(X)
    assert torch.equal(planner.disk_offload(model, empty)(X), expected)
    assert "linear2.weight.dat" in os.listdir(empty)


def test_a_model_in_memory_is_written_as_ever(empty: Path) -> None:
    model = trained()
    expected = model(X)
    assert torch.equal(planner.disk_offload(model, empty)(X), expected)
    assert "linear2.weight.dat" in os.listdir(empty)


def test_what_has_no_values_is_not_written(empty: Path) -> None:
    for offload in (
        lambda: planner.disk_offload(on_meta(), empty),
        lambda: planner.dispatch_model(on_meta(), {"": "disk"}, offload_dir=empty),
    ):
        with pytest.raises(planner.OffloadError, match=r"'linear1\.weight' is on the meta device"):
            offload()
    assert not os.listdir(empty)


def test_dispatch_names_the_ways_to_disk() -> None:
    with pytest.raises(planner.PlanMismatchError) as caught:
        planner.dispatch(Small(), {"": "disk"})
    for way in ("planner.load(", "planner.dispatch_model(", "planner.disk_offload("):
        assert way in str(caught.value)
