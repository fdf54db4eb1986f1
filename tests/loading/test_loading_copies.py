"""Copies, pickles, forks and saved files of loaded models, and loaded models made whole again."""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import planner
from rig.faults import must_end_clean
from stored_models import MAPS, STORED, Checkpoints, reference, same_outputs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    torch.set_num_threads(1)
    return Checkpoints(tmp_path_factory.mktemp("stored"))


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "pickle": pickled, "torch.save": saved}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", ["cpu", "alternating", "all_disk"])
@pytest.mark.parametrize("name", ["llama", "mixtral", "t5"])
def test_a_copy_gives_the_same(name: str, layout: str, way: str, files: Checkpoints) -> None:
    """Before a forward, after one, and when the original is gone."""
    model, plain = files.loaded(name, layout), files.plain(name)
    early = WAYS[way](model)
    same_outputs(model, plain, name)
    late = WAYS[way](model)
    del model
    for twin in (early, late):
        same_outputs(twin, plain, name)


@pytest.mark.parametrize("name", STORED)
def test_undispatching_makes_it_whole(name: str, files: Checkpoints) -> None:
    model, plain = files.loaded(name, "alternating"), files.plain(name)
    same_outputs(model, plain, name)
    planner.undispatch(model)
    want = plain.state_dict()
    found = model.state_dict()
    assert found.keys() == want.keys() and all(found[key].equal(want[key]) for key in want)
    same_outputs(model, plain, name)


@pytest.mark.parametrize("layout", ["cpu", "alternating", "all_disk"])
@pytest.mark.parametrize("name", STORED)
def test_all_weights_can_be_read_and_saved(
    name: str, layout: str, files: Checkpoints, tmp_path: Path
) -> None:
    model, plain = files.loaded(name, layout), files.plain(name)
    want = plain.state_dict()
    found = planner.state_dict(model)
    assert found.keys() == want.keys() and all(found[key].equal(want[key]) for key in want)
    model.save_pretrained(tmp_path)
    same_outputs(reference(tmp_path), plain, name)


def run_in_a_child(folder: Path, layout: str, name: str) -> None:
    """A case for the harness: the child of a fork, while the parent's reader runs, and the parent after it."""
    torch.set_num_threads(1)
    plain = reference(folder)
    model = planner.load(folder, plan=MAPS[layout](plain), read="direct")
    for forwards_before in (0, 2):
        for _ in range(forwards_before):
            same_outputs(model, plain, name)
        child = os.fork()
        if child == 0:
            try:
                same_outputs(model, plain, name, times=3)
            except BaseException:
                os._exit(1)
            os._exit(0)
        same_outputs(model, plain, name)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(("name", "layout"), [("llama", "all_disk"), ("mixtral", "alternating")])
def test_a_forked_child_gives_the_same(name: str, layout: str, files: Checkpoints) -> None:
    must_end_clean(run_in_a_child, files.folder_of(name), layout, name, time_limit_s=120)
