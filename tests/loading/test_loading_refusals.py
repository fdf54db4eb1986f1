"""What cannot be loaded is refused before anything is touched: every finding in one error, the model and the folder as before.

Files that crash, hang or fill the machine elsewhere are tried in processes of their own.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from layered_net import (
    ALTERNATING,
    LAYERS,
    Before,
    Net,
    X,
    empty,
    expected,
    is_right,
    part_of,
    refused,
    state,
    written,
)
from planner import CheckpointError, InvalidInputError, PlanMismatchError, PlannerError
from rig.faults import must_end_clean
from tensor_files import write_file

MAPS: dict[str, dict[str, Any]] = {"cpu": {"": "cpu"}, "disk": {"": "disk"}, "alternating": ALTERNATING}
INDEX = "model.safetensors.index.json"


# Checkpoints that are no checkpoints.


def rewrite(folder: Path, change: Callable[[bytes], bytes], name: str = "1.safetensors") -> None:
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


def with_header(header: bytes) -> Callable[[bytes], bytes]:
    return lambda _: struct.pack("<Q", len(header)) + header + bytes(64)


def with_index(weight_map: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))  # type: ignore[return-value]


def moved_to(place: str) -> Callable[[Path], None]:
    """One row of the index names another file, which is there."""

    def make(folder: Path) -> None:
        outside = folder.parent / "x.safetensors"
        outside.write_bytes((folder / "0.safetensors").read_bytes())
        rows = json.loads((folder / INDEX).read_text())["weight_map"]
        named = str(outside) if place == "absolute" else place
        with_index(rows | {"embed.weight": named})(folder)

    return make


def in_place_of(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def link_outside(path: Path) -> None:
    outside = path.parent.parent / "outside.safetensors"
    write_file(outside, {"a": torch.ones(2)})
    path.symlink_to(outside)


def only_a_pickle(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    torch.save(state(), folder / "pytorch_model.bin")


def twice_and_different(folder: Path) -> None:
    """A tensor in two files in two shapes: the index says which, but they cannot both be right."""
    write_file(folder / "2.safetensors", {**part_of(folder, "2"), "embed.bias": torch.ones(3)})


ROW = '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
BAD: dict[str, Callable[[Path], None]] = {
    "truncated": lambda f: rewrite(f, lambda data: data[:-4]),
    "no bytes": lambda f: rewrite(f, lambda data: b""),
    "trailing bytes": lambda f: rewrite(f, lambda data: data + b"\0"),
    "header of 2^63": lambda f: rewrite(f, lambda data: struct.pack("<Q", 1 << 63) + data[8:]),
    "deep header": lambda f: rewrite(f, with_header(b'{"a":' + b"[" * 200_000)),
    "key twice": lambda f: rewrite(f, with_header(f"{{{ROW},{ROW}}}".encode())),
    "offsets overlap": lambda f: rewrite(f, with_header(f"{{{ROW},{ROW.replace('a', 'b', 1)}}}".encode())),
    "zero byte in a name": lambda f: rewrite(
        f, with_header(b"{" + ROW.encode().replace(b"a", b"a\\u0000", 1) + b"}")
    ),
    "missing file": lambda f: (f / "1.safetensors").unlink(),
    "index names ../x": moved_to("../x.safetensors"),
    "index names /x": moved_to("absolute"),
    "index names /etc/passwd": moved_to("/etc/passwd"),
    "index names a folder": moved_to("."),
    "file is a folder": in_place_of("1.safetensors", Path.mkdir),
    "file is a pipe": in_place_of("1.safetensors", os.mkfifo),
    "file is a link outside": in_place_of("1.safetensors", link_outside),
    "index is a list": with_index(["a"]),
    "index is a number": with_index(3),
    "index is empty": with_index({}),
    "index is no JSON": lambda f: rewrite(f, lambda data: b"{", INDEX),
    "index is deep": lambda f: rewrite(f, lambda data: b'{"weight_map":' + b"[" * 100_000, INDEX),
    "index is not UTF-8": lambda f: rewrite(f, lambda data: b'{"weight_map": {"\xff": "a"}}', INDEX),
    "index of many rows": with_index({f"a.{n}.weight": "0.safetensors" for n in range(300_000)}),
    "only a pickle": only_a_pickle,
    "in two files, different": twice_and_different,
}


def case_of_a_bad_checkpoint(folder: Path, name: str) -> None:
    BAD[name](written(folder / "model"))
    listing = {path: path.is_symlink() or path.stat().st_size for path in folder.rglob("*")}
    for model, placed in itertools.product((empty(), Net()), ({"": "cpu"}, {"": "disk"})):
        error = refused(folder / "model", model, placed)
        assert str(folder) in str(error.file) or "safetensors" in str(error.file), error
    assert listing == {path: path.is_symlink() or path.stat().st_size for path in folder.rglob("*")}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    must_end_clean(case_of_a_bad_checkpoint, tmp_path, name)


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path)
    for number in (0, 2):
        (folder / f"{number}.safetensors").unlink()
    text = str(refused(folder, empty(), {"": "disk"}))
    assert "0.safetensors" in text and "2.safetensors" in text


# Maps and settings.


@pytest.mark.parametrize(
    "placed",
    [
        {"": "cpu", "layers.9": "disk"},
        {"embed": "cpu"},
        {"": "cpu", "layers.0": "cuda:7"},
        {"": 5},
        {},
    ],
    ids=["names nothing", "lacks parameters", "device by name", "device by number", "empty"],
)
def test_a_map_that_does_not_fit_is_refused(placed: dict[str, Any], tmp_path: Path) -> None:
    folder = written(tmp_path)
    for model in (empty(), Net()):
        refused(folder, model, placed, PlannerError)


@pytest.mark.parametrize(
    "settings",
    [
        {"copy": "always"},
        {"read": "mmap"},
        {"convert": 3},
        {"dtype": "int9"},
        {"dtype": torch.int64},
        {"allow_missing": 3},
        {"rename": 3},
        {"staging_bytes": {"cpu": -1}},
        {"staging_bytes": {"disk": 10}},
        {"outside": "sometimes"},
        {"strict": "no"},
        {"progress": 3},
        {"no_such_setting": 1},
        {"offload_folder": 3},
    ],
    ids=lambda setting: f"{next(iter(setting))}={next(iter(setting.values()))}",
)
def test_a_setting_that_is_none_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    folder, model = written(tmp_path), empty()
    before = Before(model)
    with pytest.raises((InvalidInputError, PlanMismatchError, TypeError)):
        planner.load(folder, model, {"": "disk"}, **settings)
    assert before.difference() == ""


@pytest.mark.parametrize("checkpoint", ["nowhere", "", 3, None])
def test_what_is_no_checkpoint_is_refused(checkpoint: Any, tmp_path: Path) -> None:
    model = empty()
    before = Before(model)
    with pytest.raises(PlannerError):
        planner.load(tmp_path / checkpoint if checkpoint == "nowhere" else checkpoint, model, {"": "cpu"})
    assert before.difference() == ""


def test_one_that_is_loaded_already_is_loaded_anew(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a"), written(tmp_path / "b", state(seed=2))
    model = planner.load(first, empty(), ALTERNATING)
    with torch.no_grad():
        assert model(X).equal(expected())
        planner.load(second, model, {"": "disk"})
        assert model(X).equal(expected(seed=2))
        planner.load(first, model, {"": "cpu"})
        assert model(X).equal(expected())


def test_a_failure_leaves_a_loaded_model_running(tmp_path: Path) -> None:
    good, bad = written(tmp_path / "a"), written(tmp_path / "b", state() | {"head.bias": torch.ones(3)})
    model = planner.load(good, empty(), ALTERNATING)
    with torch.no_grad():
        assert model(X).equal(expected())
        for placed in MAPS.values():
            with pytest.raises(CheckpointError):
                planner.load(bad, model, placed)
            assert model.hf_device_map == ALTERNATING and model(X).equal(expected())


def test_a_loop_of_modules_is_refused(tmp_path: Path) -> None:
    model = empty()
    model.embed.add_module("whole", model)
    with pytest.raises(PlannerError):
        planner.load(written(tmp_path), model, {"": "cpu"})
    assert all(parameter.is_meta for parameter in model.head.parameters())


def test_a_module_that_is_registered_twice_is_loaded_once(tmp_path: Path) -> None:
    for placed in ({"": "cpu"}, {"": "disk"}):
        model = empty()
        model.again = model.layers[0]
        planner.load(written(tmp_path), model, placed)
        assert model.again is model.layers[0]
        with torch.no_grad():
            assert model(X).equal(expected())


# Other spellings of good ones.


def test_paths_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no UTF-8, relative ones after the process has moved, one file alone."""
    odd = written(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")))
    alone = write_file(tmp_path / "all.safetensors", state())
    monkeypatch.chdir(tmp_path)
    for checkpoint in (odd, alone, Path(odd.name), alone.name):
        model = planner.load(checkpoint, empty(), ALTERNATING)
        os.chdir("/")
        with torch.no_grad():
            assert all(model(X).equal(expected()) for _ in range(2)), checkpoint
        os.chdir(tmp_path)


def test_a_file_with_an_upper_case_name(tmp_path: Path) -> None:
    """Read, or refused in words: never taken for a pickle."""
    file = write_file(tmp_path / "MODEL.SAFETENSORS", state())
    model = empty()
    try:
        planner.load(file, model, ALTERNATING)
    except CheckpointError as error:
        assert "SAFETENSORS" in str(error)
    else:
        with torch.no_grad():
            assert model(X).equal(expected())


@pytest.mark.parametrize("layers", [0, 1, LAYERS])
def test_hardly_any_layers(layers: int, tmp_path: Path) -> None:
    tensors = state(layers=layers)
    folder = written(tmp_path, tensors)
    plain = Net(layers=layers)
    plain.load_state_dict(tensors)
    for placed in ({"": "cpu"}, {"": "disk"}):
        model = planner.load(folder, empty(layers=layers), placed)
        with torch.no_grad():
            assert all(model(X).equal(plain(X)) for _ in range(2))


def test_every_name_is_in_the_findings_and_the_message_stays_short(tmp_path: Path) -> None:
    error = refused(written(tmp_path, {"alone": torch.ones(1)}), empty(), {"": "cpu"})
    for name in state():
        assert repr(name) in error.findings[0]
    assert " more" in error.reason and len(str(error)) < 1000


@pytest.mark.parametrize(
    ("change", "rename"),
    [
        (lambda name: f"module.{name}", "rename=lambda name: name.removeprefix('module.')"),
        (lambda name: name.removeprefix("layers."), "allow_missing="),
    ],
)
def test_names_that_differ_in_front_are_told_with_what_changes_them(
    change: Callable[[str], str], rename: str, tmp_path: Path
) -> None:
    tensors = {change(name): value for name, value in state().items()}
    assert rename in str(refused(written(tmp_path, tensors), empty(), {"": "cpu"}))


def test_names_that_lack_what_the_model_has_in_front(tmp_path: Path) -> None:
    folder = written(tmp_path)
    words = "rename=lambda name: '0.' + name"
    assert words in str(refused(folder, nn.Sequential(empty()), {"": "cpu"}))  # type: ignore[arg-type]
    model = nn.Sequential(empty())
    planner.load(folder, model, {"": "cpu"}, rename=lambda name: "0." + name)
    assert is_right(model, 1)
