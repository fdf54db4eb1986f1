"""Folders for what is stored in another form: shared, broken, full, and empty where nothing is stored.

Each case is a process of its own: elsewhere they crash, hang or compute with other weights.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import planner
from layered_net import (
    MAPS,
    Before,
    Net,
    X,
    empty,
    is_right,
    state,
    written,
)
from planner import PlannerError
from rig.faults import Outcome, Verdict, judge, must_end_clean


def stored_form(folder: Path, store: Path, seed: int = 1) -> Any:
    """Of files that are written first."""
    return with_store(written(folder, state(seed=seed)), store)


def with_store(folder: Path, store: Path, model: Net | None = None) -> Any:
    """On disk as bfloat16, of files in float32."""
    settings: dict[str, Any] = {"dtype": torch.bfloat16, "convert": "store", "offload_folder": store}
    return planner.load(folder, model or empty(), {"": "disk"}, **settings)


def weights_are_right(model: torch.nn.Module, seed: int = 1) -> bool:
    found = planner.state_dict(model)
    return all(
        found[name].equal(value.bfloat16() if value.is_floating_point() else value)
        for name, value in state(seed=seed).items()
    )


def runs(model: torch.nn.Module) -> bool:
    """In bfloat16 but for the buffer that no file holds: its positions are whole numbers, and the same."""
    model.norm.positions = model.norm.positions.bfloat16()
    with torch.no_grad():
        first = model(X.bfloat16())
        return first.isfinite().all().item() and all(model(X.bfloat16()).equal(first) for _ in range(2))


def test_what_is_stored_is_stored_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = stored_form(tmp_path / "model", store)
    assert planner.load_report(first).written_bytes > 0 and weights_are_right(first) and runs(first)
    listing = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    assert listing
    second = with_store(tmp_path / "model", store)
    assert planner.load_report(second).written_bytes == 0 and weights_are_right(second) and runs(second)
    assert listing == {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}


def test_two_models_share_a_folder(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = stored_form(tmp_path / "a", store)
    second = stored_form(tmp_path / "b", store, seed=2)
    for _ in range(2):
        assert weights_are_right(first) and weights_are_right(second, seed=2)
        assert runs(first) and runs(second)


def case_of_a_model_beside_another(folder: Path, store: Path, seed: int) -> None:
    for _ in range(8):
        assert weights_are_right(stored_form(folder, store, seed), seed)


def load_only(folder: Path, store: Path) -> None:
    model = with_store(folder, store)
    assert weights_are_right(model) and runs(model)


def test_processes_share_a_folder(tmp_path: Path) -> None:
    """Of one model, which one writes and the others read, and of another one."""
    same = written(tmp_path / "same")
    found: list[Outcome] = []
    cases: list[tuple[Any, ...]] = [(load_only, same, tmp_path / "store")] * 4
    cases += [(case_of_a_model_beside_another, tmp_path / "other", tmp_path / "store", 2)]
    threads = [threading.Thread(target=lambda c=case: found.append(judge(*c))) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(cases)
    assert all(outcome.verdict is Verdict.CLEAN and outcome.error is None for outcome in found), found


def half_written(store: Path) -> None:
    for path in files_of(store):
        os.truncate(path, path.stat().st_size // 2)


def touched(store: Path) -> None:
    for path in files_of(store):
        if path.suffix == ".safetensors":
            os.utime(path, ns=(1, 1))


def without_a_manifest(store: Path) -> None:
    """As a crash before the last step leaves it."""
    for path in files_of(store):
        if path.suffix != ".safetensors":
            path.unlink()


def without_weights(store: Path) -> None:
    for path in files_of(store):
        if path.suffix == ".safetensors":
            path.unlink()


def left_over(store: Path) -> None:
    for path in files_of(store):
        path.with_name(f"{path.name}.tmp").write_bytes(b"half")


def files_of(store: Path) -> list[Path]:
    return [path for path in store.rglob("*") if path.is_file()]


def case_of_a_store_that_is_broken(folder: Path, store: Path, name: str) -> None:
    assert weights_are_right(stored_form(folder, store))
    gc.collect()
    assert files_of(store)
    STORE_FAULTS[name](store)
    try:
        load_only(folder, store)
    except PlannerError as error:
        assert str(store) in str(error), error


STORE_FAULTS: dict[str, Callable[[Path], None]] = {
    "half written": half_written,
    "another time": touched,
    "no manifest": without_a_manifest,
    "no weights": without_weights,
    "left over": left_over,
}


@pytest.mark.parametrize("name", STORE_FAULTS)
def test_a_store_that_is_broken_is_made_anew_or_refused(name: str, tmp_path: Path) -> None:
    must_end_clean(case_of_a_store_that_is_broken, tmp_path / "model", tmp_path / "store", name)


def refused_and_named(folder: Path, store: Path, model: Any) -> None:
    """Nothing can be stored: the error names the folder, and the model is as it was."""
    before = Before(model)
    try:
        with_store(folder, store, model)
    except PlannerError as error:
        assert str(store) in str(error), error
    else:
        raise AssertionError("nothing was written, and nobody said so")
    assert before.difference() == ""


def case_of_a_full_disk(folder: Path, store: Path) -> None:
    """A limit on the size of files stands for it; root may write everywhere."""
    written(folder)
    store.mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    model = empty()
    refused_and_named(folder, store, model)
    assert not [path for path in files_of(store) if path.stat().st_size > 0], files_of(store)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    must_end_clean(case_of_a_full_disk, tmp_path / "model", tmp_path / "store")


def case_of_a_folder_that_cannot_be_written(folder: Path, store: Path) -> None:
    written(folder)
    model = empty()
    refused_and_named(folder, store, model)
    assert is_right(planner.load(folder, model, {"": "disk"}, offload_folder=store))


def test_a_folder_that_cannot_be_written_is_needed_for_storing_alone(tmp_path: Path) -> None:
    """A file in its place; what lies in the checkpoint as it is needs no folder."""
    (tmp_path / "file").write_text("")
    must_end_clean(case_of_a_folder_that_cannot_be_written, tmp_path / "model", tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""


def test_a_link_in_the_store_is_not_followed(tmp_path: Path) -> None:
    store, precious = tmp_path / "store", tmp_path / "precious"
    assert weights_are_right(stored_form(tmp_path / "model", store))
    precious.write_text("precious")
    for path in files_of(store):
        path.unlink()
        path.symlink_to(precious)
    with contextlib.suppress(PlannerError):
        load_only(tmp_path / "model", store)
    assert precious.read_text() == "precious"


def test_nothing_is_written_where_nothing_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "offload").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = written(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    for placed, dtype in itertools.product(MAPS.values(), ("auto", torch.bfloat16)):
        model = planner.load(folder, empty(), placed, dtype=dtype, offload_folder=tmp_path / "offload")
        if dtype == "auto":
            assert is_right(model)
        assert planner.load_report(model).written_bytes == 0
    assert sorted(tmp_path.rglob("*")) == before
