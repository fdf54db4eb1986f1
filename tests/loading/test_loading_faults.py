"""What happens to files after loading: the right answer, or an error before anything is read.

Each case is a process of its own: elsewhere they crash, hang or compute with other weights.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import planner
from layered_net import (
    EVERY_WAY,
    LAYERS,
    MAPS,
    X,
    empty,
    is_right,
    layout_of,
    state,
    written,
)
from planner import CheckpointError, OffloadError
from rig.faults import all_must_end_clean, must_end_clean
from tensor_files import write_file


def cut(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        os.truncate(path, path.stat().st_size // 2)


def emptied(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        os.truncate(path, 0)


def longer(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        with path.open("ab") as file:
            file.write(bytes(4096))


def overwritten(folder: Path) -> None:
    """With other values, in place, as `cp` does it."""
    for path in folder.glob("*.safetensors"):
        with path.open("r+b") as file:
            file.seek(-64, os.SEEK_END)
            file.write(b"\x40" * 64)


CHANGED: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "emptied": emptied,
    "longer": longer,
    "overwritten": overwritten,
}


def replaced(folder: Path) -> None:
    """As libraries save: written beside it, then renamed over it."""
    for path in folder.glob("*.safetensors"):
        other = write_file(folder / "other", {"a": torch.ones(3)})
        other.rename(path)


def deleted(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()


HARMLESS: dict[str, Callable[[Path], None]] = {
    "replaced": replaced,
    "deleted": deleted,
    "folder deleted": shutil.rmtree,
    "moved": lambda folder: folder.rename(folder.with_name(f"{folder.name} elsewhere")),  # type: ignore[dict-item,return-value]
}


def case_of_changed_files(folder: Path, name: str, layout: str, read: str, forwards: int) -> None:
    model = planner.load(written(folder), empty(), MAPS[layout], read=read)
    assert is_right(model, forwards)
    CHANGED[name](folder)
    for _ in range(3):  # once is not enough: the next forward asks again
        try:
            model(X)
        except OffloadError as error:
            assert ".safetensors" in str(error) and error.name, error
        else:
            raise AssertionError("computed with files that have changed")


@pytest.mark.parametrize("name", CHANGED)
def test_files_that_change_are_noticed_before_they_are_read(name: str, tmp_path: Path) -> None:
    variants = [(name, *way, forwards) for way in EVERY_WAY for forwards in (0, 3)]
    all_must_end_clean(case_of_changed_files, tmp_path, variants)


def case_of_one_changed_file(folder: Path, number: int) -> None:
    """Only views on the CPU lie in file 1, only weights on disk in the others."""
    tensors = state()
    resident = {name: value for name, value in tensors.items() if not name.startswith("layers.")}
    write_file(folder / "0.safetensors", {n: v for n, v in tensors.items() if n not in resident})
    write_file(folder / "1.safetensors", resident)
    rows = {name: f"{int(name in resident)}.safetensors" for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": rows}))
    placed = {"": "cpu", **{f"layers.{n}": "disk" for n in range(LAYERS)}}
    model = planner.load(folder, empty(), placed)
    assert is_right(model)
    path = folder / f"{number}.safetensors"
    os.truncate(path, path.stat().st_size - 8)
    try:
        model(X)
    except OffloadError as error:
        assert path.name in str(error), error
    else:
        raise AssertionError("computed with a file that was cut")


@pytest.mark.parametrize("number", [0, 1])
def test_a_file_of_which_only_views_lie_on_the_cpu_is_asked_too(number: int, tmp_path: Path) -> None:
    must_end_clean(case_of_one_changed_file, tmp_path, number)


def case_of_harmless_changes(folder: Path, name: str, layout: str, read: str) -> None:
    model = planner.load(written(folder), empty(), MAPS[layout], read=read)
    early = planner.load(folder, empty(), MAPS[layout], read=read)
    assert is_right(model)
    HARMLESS[name](folder)
    assert is_right(model) and is_right(early)
    found = planner.state_dict(model)
    assert all(found[key].equal(value) for key, value in state().items())
    planner.undispatch(model)
    assert is_right(model)


@pytest.mark.parametrize("name", HARMLESS)
def test_files_that_are_replaced_or_deleted_go_on_being_read(name: str, tmp_path: Path) -> None:
    all_must_end_clean(case_of_harmless_changes, tmp_path, [(name, *way) for way in EVERY_WAY])


def case_of_copies(folder: Path, layout: str) -> None:
    """What was copied needs its file no more."""
    model = planner.load(written(folder), empty(), layout_of(layout), copy=True)
    emptied(folder)
    resident = {name: t for name, t in model.named_parameters() if not t.is_meta}
    assert resident and all(state()[name].equal(t) for name, t in resident.items())
    if layout == "cpu":
        assert is_right(model)


@pytest.mark.parametrize("layout", ["cpu", "alternating"])
def test_a_copy_survives_a_file_that_is_cut(layout: str, tmp_path: Path) -> None:
    must_end_clean(case_of_copies, tmp_path / "model", layout)


def case_of_saving_over(folder: Path, layout: str) -> None:
    """`state_dict` of a loaded model is written where it came from, file by file."""
    model = planner.load(written(folder), empty(), MAPS[layout])
    assert is_right(model)
    values = planner.state_dict(model)
    for path in sorted(folder.glob("*.safetensors")):
        rows = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        names = [name for name, file in rows.items() if file == path.name]
        write_file(folder / "temporary", {name: values[name] for name in names}).rename(path)
    assert is_right(model)
    assert is_right(planner.load(folder, empty(), MAPS[layout]))


@pytest.mark.parametrize("layout", MAPS)
def test_a_model_is_saved_over_what_it_was_loaded_from(layout: str, tmp_path: Path) -> None:
    must_end_clean(case_of_saving_over, tmp_path, layout)


def case_of_few_handles_and_changes(folder: Path, name: str) -> None:
    """What is opened again must be the same file."""
    tensors = state()
    written(folder, tensors, files=len(tensors))
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12,) * 2)
    model = planner.load(folder, empty(), {"": "disk"}, read="direct")
    assert is_right(model)
    {**CHANGED, **HARMLESS}[name](folder)
    for _ in range(2):
        try:
            assert is_right(model, 1), "other weights"
        except (OffloadError, CheckpointError) as error:
            assert ".safetensors" in str(error), error


@pytest.mark.parametrize("name", [*CHANGED, *HARMLESS])
def test_files_without_a_handle_that_change(name: str, tmp_path: Path) -> None:
    must_end_clean(case_of_few_handles_and_changes, tmp_path / "model", name)
