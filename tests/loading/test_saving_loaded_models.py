"""A loaded model is saved as it was stored, whatever of it is on disk, and is made whole again."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import modeling as accelerate_modeling
from safetensors import safe_open

import planner
from layered_net import Net, X, empty, expected, state, written
from planner import OffloadError
from planner.dispatching.tensors.own_addresses import OwnAddresses
from rig.faults import must_end_clean
from stored_models import MAPS, inputs_of, reference, stored

NAMES = ("llama", "gpt2", "mixtral", "qwen3_moe")
LAYOUTS = ("half", "all_disk")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
        yield


def loaded(folder: Path, layout: str = "all_disk", **settings: Any) -> Any:
    return planner.load(folder, plan=MAPS[layout](reference(folder)), **settings)


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What lies in a folder's files, by its names there."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (it is no dict)
    return found


def are_equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def is_right(model: Any, name: str, folder: Path) -> bool:
    with torch.no_grad():
        found, wanted = (each(**inputs_of(name)).logits for each in (model, reference(folder)))
    return torch.equal(found, wanted)


HOW: dict[str, Callable[[Any], dict[str, Any]]] = {
    "whole": lambda _: {},
    "in shards": lambda _: {"max_shard_size": "60KB"},
    "one at a time": lambda model: {"state_dict": planner.state_dict(model)},
    "one at a time, in shards": lambda model: {
        "state_dict": planner.state_dict(model),
        "max_shard_size": "60KB",
    },
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_those_that_were_loaded(name: str, how: str, tmp_path: Path) -> None:
    """The same names, fused experts apart, and the same bits."""
    folder = stored(name, tmp_path / "model")
    model = loaded(folder, "all_disk" if "shards" in how else "half")
    model.save_pretrained(tmp_path / "saved", **HOW[how](model))
    assert are_equal(stored_tensors(tmp_path / "saved"), stored_tensors(folder))
    assert is_right(loaded(tmp_path / "saved"), name, folder)
    assert are_equal(reference(tmp_path / "saved").state_dict(), reference(folder).state_dict())


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_files_in_the_live_form_stay_in_it(name: str, tmp_path: Path) -> None:
    """No step was used to load them, so none is turned back."""
    folder = stored(name, tmp_path / "model")
    reference(folder).save_pretrained(tmp_path / "live", save_original_format=False)
    model = loaded(tmp_path / "live")
    assert model._weight_conversions == []
    model.save_pretrained(tmp_path / "saved")
    assert are_equal(stored_tensors(tmp_path / "saved"), stored_tensors(tmp_path / "live"))


def test_the_steps_are_those_of_from_pretrained(tmp_path: Path) -> None:
    folder = stored("mixtral", tmp_path / "model")

    def steps(model: Any) -> list[Any]:
        return [
            (type(step), step.source_patterns, step.target_patterns) for step in model._weight_conversions
        ]

    assert steps(loaded(folder)) == steps(reference(folder)) != []


def test_a_load_that_fails_leaves_the_steps_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored("mixtral", tmp_path / "model")
    model: Any = reference(folder)
    before = model._weight_conversions

    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("planner.loading.commit.prepare", fails)
    with pytest.raises(MemoryError):
        planner.load(folder, model, {"": "disk"})
    assert model._weight_conversions is before


@pytest.mark.parametrize("form", ["fetch", "store"])
def test_a_stored_form_is_saved_as_the_files_were(form: Any, tmp_path: Path) -> None:
    folder = stored("mixtral", tmp_path / "model")
    model = loaded(folder, convert=form, offload_folder=tmp_path / "store")
    model.save_pretrained(tmp_path / "saved")
    assert are_equal(stored_tensors(tmp_path / "saved"), stored_tensors(folder))


# ---- Into the folder that was loaded from


def case_of_saving_in_place(folder: Path, name: str, how: str) -> None:
    wanted = stored_tensors(folder)
    logits = reference(folder)(**inputs_of(name)).logits
    model = loaded(folder, "half")
    model.save_pretrained(folder, **HOW[how](model))
    with torch.no_grad():
        assert torch.equal(model(**inputs_of(name)).logits, logits)
    assert are_equal(stored_tensors(folder), wanted)
    assert is_right(loaded(folder), name, folder)


@pytest.mark.parametrize("how", ["whole", "one at a time, in shards"])
@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_into_the_folder_that_was_loaded_from(name: str, how: str, tmp_path: Path) -> None:
    """In a process of its own: a file that is cut under its views ends it."""
    must_end_clean(case_of_saving_in_place, stored(name, tmp_path / "model"), name, how)


def test_after_training_the_new_values_are_saved(tmp_path: Path) -> None:
    """What was written into a view of a file is the model's, and stays out of the file."""
    folder = stored("llama", tmp_path / "model")
    before = stored_tensors(folder)
    model = loaded(folder, "half")
    resident = next(p for p in model.parameters() if not p.is_meta)
    with torch.no_grad():
        resident.add_(1)
    assert are_equal(stored_tensors(folder), before)
    model.save_pretrained(tmp_path / "saved")
    changed = [
        name
        for name, value in stored_tensors(tmp_path / "saved").items()
        if not torch.equal(value, before[name])
    ]
    assert len(changed) == 1


# ---- accelerate's way, and torch's


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
@pytest.mark.parametrize("function", ["planner", "accelerate"])
def test_state_dicts_of_offloaded_models(function: str, name: str, tmp_path: Path) -> None:
    folder = stored(name, tmp_path / "model")
    give: Any = (planner if function == "planner" else accelerate_modeling).get_state_dict_offloaded_model
    assert are_equal(give(loaded(folder)), reference(folder).state_dict())


def saved_bytes(thing: Any) -> int:
    file = io.BytesIO()
    torch.save(thing, file)
    return file.tell()


@pytest.mark.parametrize("layout", ["cpu", "all_disk"])
def test_what_is_saved_is_as_large_as_it_is(layout: str, tmp_path: Path) -> None:
    """Each tensor's storage is its own, not the file's."""
    model = planner.load(
        written(tmp_path / "model", files=1), empty(), {"": "cpu" if layout == "cpu" else "disk"}
    )
    whole = saved_bytes(Net())
    assert saved_bytes(dict(planner.state_dict(model))) < 1.2 * whole
    assert saved_bytes(model) < 1.5 * whole and len(pickle.dumps(model)) < 1.5 * whole
    for tensor in planner.state_dict(model).values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_model_on_disk_is_pickled_as_the_names_of_its_files(tmp_path: Path) -> None:
    net = Net(width=128)
    model = planner.load(written(tmp_path / "model", state(width=128)), Net(width=128), {"": "disk"})
    assert saved_bytes(model) < sum(tensor.nbytes for tensor in net.state_dict().values()) / 4
    again = pickle.loads(pickle.dumps(model))
    assert all(
        torch.equal(value, state(width=128)[name]) for name, value in planner.state_dict(again).items()
    )


def test_copies_run_and_are_saved(tmp_path: Path) -> None:
    folder = stored("mixtral", tmp_path / "model")
    for copied in (copy.deepcopy(loaded(folder)), pickle.loads(pickle.dumps(loaded(folder)))):
        copied.save_pretrained(tmp_path / "saved")
        assert are_equal(stored_tensors(tmp_path / "saved"), stored_tensors(folder))


# ---- Whole again


@pytest.mark.parametrize("layout", LAYOUTS)
def test_undispatched_it_is_whole_and_needs_no_file(layout: str, tmp_path: Path) -> None:
    folder = stored("mixtral", tmp_path / "model")
    # Of its own memory: transformers' models are views of the files, too.
    wanted = {name: value.clone() for name, value in reference(folder).state_dict().items()}
    model = loaded(folder, layout)
    was_offloaded = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    planner.undispatch(model)
    assert not hasattr(model, "hf_device_map")
    assert are_equal(model.state_dict(), wanted)
    for name in was_offloaded:
        parameter = model.get_parameter(name)
        assert parameter.untyped_storage().resizable() and parameter.requires_grad
    if layout == "all_disk":
        for path in folder.glob("*.safetensors"):
            os.truncate(path, 0)
        assert are_equal(model.state_dict(), wanted)


def test_tied_tensors_are_one_again(tmp_path: Path) -> None:
    model = planner.undispatch(loaded(stored("gpt2", tmp_path / "model")))
    assert model.lm_head.weight is model.transformer.wte.weight


# ---- Files that change


def case_of_reading_a_file_that_was_cut(folder: Path, read: str) -> None:
    model = planner.load(written(folder, files=1), empty(), {"": "disk"})
    assert torch.equal(model(X), expected())
    os.truncate(next(folder.glob("*.safetensors")), 100)
    reads: dict[str, Callable[[], Any]] = {
        "state dict": lambda: dict(planner.state_dict(model)),
        "offloaded": lambda: planner.get_state_dict_offloaded_model(model),
        "whole": lambda: planner.undispatch(model),
    }
    try:
        reads[read]()
    except OffloadError as error:
        assert "is 100 bytes now" in str(error)
    else:
        raise AssertionError("it was read")


@pytest.mark.parametrize("read", ["state dict", "offloaded", "whole"])
def test_a_file_that_was_cut_is_not_read_to_save_it(read: str, tmp_path: Path) -> None:
    must_end_clean(case_of_reading_a_file_that_was_cut, tmp_path / "model", read)


# ---- One at a time


def test_what_is_made_anew_has_an_address_of_its_own(tmp_path: Path) -> None:
    """One after the other in one place, two weights would look tied, and one of them would not be saved."""
    found = planner.state_dict(loaded(stored("mixtral", tmp_path / "model")))
    addresses = {name: found[name].data_ptr() for name in found}
    assert len(set(addresses.values())) == len(addresses)
    assert addresses == {name: found[name].data_ptr() for name in found}


def test_tied_names_have_one_address(tmp_path: Path) -> None:
    found = planner.state_dict(loaded(stored("gpt2", tmp_path / "model"), dtype=torch.bfloat16))
    assert found["lm_head.weight"].data_ptr() == found["transformer.wte.weight"].data_ptr()


def test_a_state_dict_can_be_taken_apart(tmp_path: Path) -> None:
    model = loaded(stored("llama", tmp_path / "model"))
    found = planner.state_dict(model)
    name = next(iter(found))
    value = found.pop(name)
    assert name not in found and torch.equal(value, planner.state_dict(model)[name])
    found["more"] = value
    assert (
        found["more"] is value and list(found)[-1] == "more" and len(found) == len(planner.state_dict(model))
    )
    with pytest.raises(KeyError):
        del found[name]


def anonymous_bytes() -> int:
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="Linux says what memory is in use")
def test_copies_that_nobody_has_take_no_memory() -> None:
    addresses = OwnAddresses()
    size_bytes = 16 * 2**20
    before = anonymous_bytes()
    for number in range(16):
        addresses.copy(torch.ones(size_bytes // 4), number)
    assert anonymous_bytes() - before < 6 * size_bytes


def test_a_copy_in_use_stays_as_it_is() -> None:
    addresses = OwnAddresses()
    first = addresses.copy(torch.ones(4), "weight")
    assert addresses.copy(torch.ones(4), "weight").data_ptr() == first.data_ptr()
    other = addresses.copy(torch.zeros(4), "weight")
    assert torch.equal(first, torch.ones(4)) and torch.equal(other, torch.zeros(4))
    negative = addresses.copy(torch.full((4,), -0.0), "zero")
    assert addresses.copy(torch.zeros(4), "zero").signbit().sum() == 0 and negative.signbit().all()
    del addresses
    gc.collect()
    assert torch.equal(first, torch.ones(4))
