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
from layered_net import ALTERNATING, LAYERS, Before, Net, X, empty, expected, state, written
from planner import CheckpointError, InvalidInputError, OffloadError, PlanMismatchError, PlannerError
from rig.faults import must_end_clean
from tensor_files import write_file

MAPS: dict[str, dict[str, Any]] = {"cpu": {"": "cpu"}, "disk": {"": "disk"}, "alternating": ALTERNATING}
INDEX = "model.safetensors.index.json"


def refused(
    checkpoint: Path,
    model: nn.Module,
    placed: Any,
    error: type[PlannerError] = CheckpointError,
    **settings: Any,
) -> PlannerError:
    """The error, which leaves the model as it was."""
    before = Before(model)
    with pytest.raises(error) as caught:
        planner.load(checkpoint, model, placed, **settings)
    assert before.difference() == ""
    if isinstance(caught.value, CheckpointError):
        assert caught.value.reason and caught.value.file
    return caught.value


def findings_of(error: PlannerError) -> str:
    return "\n".join(str(finding) for finding in error.findings)


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


def part_of(folder: Path, number: str) -> dict[str, torch.Tensor]:
    rows = json.loads((folder / INDEX).read_text())["weight_map"]
    return {name: value for name, value in state().items() if rows[name] == f"{number}.safetensors"}


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


# Checkpoints that are of another model.


@pytest.mark.parametrize("layout", MAPS)
@pytest.mark.parametrize("make", [empty, Net])
def test_all_findings_come_in_one_error(layout: str, make: Callable[[], Net], tmp_path: Path) -> None:
    tensors = state()
    del tensors["layers.0.up.weight"], tensors["head.bias"]
    tensors["layers.1.up.weight"] = torch.ones(3, 3)
    tensors["layers.2.scale"] = torch.ones(17)
    tensors["embed.weight"] = torch.ones(16, 16, dtype=torch.int64)
    tensors["norm.steps"] = torch.tensor(2.7)
    tensors["other.weight"] = torch.ones(2)
    error = refused(written(tmp_path, tensors), make(), MAPS[layout])
    text = findings_of(error)
    for name in (
        "layers.0.up.weight",
        "head.bias",
        "layers.1.up.weight",
        "layers.2.scale",
        "embed.weight",
        "norm.steps",
        "other.weight",
    ):
        assert name in text
    for words in ("[3, 3]", "[32, 16]", "int64", "float32"):
        assert words in text


@pytest.mark.parametrize("stored", [torch.int64, torch.int8, torch.uint8, torch.bool])
def test_whole_numbers_are_never_cast(stored: torch.dtype, tmp_path: Path) -> None:
    tensors = state() | {"head.bias": torch.ones(16, dtype=stored)}
    for dtype in ("auto", torch.bfloat16):
        error = refused(written(tmp_path, tensors), empty(), {"": "disk"}, dtype=dtype)
        assert "head.bias" in findings_of(error)


@pytest.mark.parametrize("layout", MAPS)
def test_a_cast_that_makes_values_infinite_is_refused(layout: str, tmp_path: Path) -> None:
    """Named with how many; what was infinite before may stay so."""
    tensors = state()
    tensors["embed.weight"][:3, 0] = 1e6
    tensors["layers.2.up.bias"][:2] = -7e4
    tensors["head.bias"][0] = torch.inf
    folder = written(tmp_path, tensors)
    if layout == "cpu":
        text = str(refused(folder, empty(), MAPS[layout], OffloadError, dtype=torch.float16))
        assert "embed.weight" in text and "3" in text
        return
    with pytest.raises(PlannerError, match="infinite"), torch.no_grad():
        planner.load(folder, empty(), MAPS[layout], dtype=torch.float16)(X.half())


def test_a_finite_cast_is_made(tmp_path: Path) -> None:
    folder = written(tmp_path, state())
    for placed in MAPS.values():
        model = planner.load(folder, empty(), placed, dtype=torch.bfloat16)
        found = planner.state_dict(model)
        for name, value in state().items():
            want = value.bfloat16() if value.is_floating_point() else value
            assert found[name].dtype == want.dtype and found[name].equal(want), name
        assert planner.load_report(model).written_bytes == 0


@pytest.mark.parametrize(
    "name",
    [
        "forward.__func__.__globals__.x",
        "layers.0.__class__.weight",
        "layers.0.up.weight.data",
        "layers.-1.up.weight",
        "layers.00.up.weight",
        "__dict__.weight",
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_names_are_looked_up_and_never_walked(name: str, strict: bool, tmp_path: Path) -> None:
    tensors = state() | {name: torch.ones(1)}
    if name.startswith("layers.0.up.weight."):
        del tensors["layers.0.up.weight"]
    folder = written(tmp_path, tensors)
    model = empty()
    if not strict and "layers.0.up.weight" in tensors:
        planner.load(folder, model, {"": "cpu"}, strict=False)
        assert name in str(planner.load_report(model).unexpected)
        with torch.no_grad():
            assert model(X).equal(expected())
        return
    error = refused(folder, model, {"": "cpu"}, strict=strict)
    assert name in str(error) or "layers.0.up.weight" in str(error)


def test_unexpected_tensors_are_refused_allowed_or_noted(tmp_path: Path) -> None:
    folder = written(tmp_path, state() | {"other.a": torch.ones(1), "other.b": torch.ones(1)})
    text = findings_of(refused(folder, empty(), {"": "disk"}))
    assert "other.a" in text and "other.b" in text
    assert "other.b" in findings_of(refused(folder, empty(), {"": "disk"}, allow_unexpected=["other.a"]))
    settings: tuple[dict[str, Any], ...] = ({"allow_unexpected": ["other.*"]}, {"strict": False})
    for setting in settings:
        model = planner.load(folder, empty(), {"": "disk"}, **setting)
        assert sorted(planner.load_report(model).unexpected) == ["other.a", "other.b"]
        with torch.no_grad():
            assert model(X).equal(expected())


def test_a_missing_tensor_that_is_allowed_keeps_its_value_or_is_initialised(tmp_path: Path) -> None:
    tensors = state()
    del tensors["head.weight"], tensors["head.bias"]
    folder = written(tmp_path, tensors)
    assert "head.bias" in findings_of(refused(folder, Net(), {"": "cpu"}, allow_missing=["head.weight"]))
    live = Net()
    kept = live.head.weight.detach().clone(), live.head.bias.detach().clone()
    planner.load(folder, live, {"": "cpu"}, allow_missing=["head.*"])
    assert live.head.weight.equal(kept[0]) and live.head.bias.equal(kept[1])
    assert live.embed.weight.equal(tensors["embed.weight"])
    for placed in MAPS.values():
        bare = planner.load(folder, empty(), placed, allow_missing=["head.*"])
        found = planner.state_dict(bare)
        assert not found["head.weight"].is_meta and 0 < found["head.weight"].abs().max() <= 0.25
        assert sorted(planner.load_report(bare).missing) == ["head.bias", "head.weight"]
        with torch.no_grad():
            assert bare(X).isfinite().all()


def test_a_buffer_that_no_file_holds_is_rebuilt_or_named(tmp_path: Path) -> None:
    """Plain modules have no code of their own that builds it again."""
    folder = written(tmp_path)
    model = empty()
    model.norm.positions = model.norm.positions.to("meta")
    assert "norm.positions" in str(refused(folder, model, {"": "cpu"}))


def test_the_index_says_which_of_two_equal_copies_counts(tmp_path: Path) -> None:
    folder = written(tmp_path)
    write_file(folder / "2.safetensors", {**part_of(folder, "2"), "embed.bias": torch.full((16,), 9.0)})
    model = planner.load(folder, empty(), ALTERNATING)
    with torch.no_grad():
        assert model(X).equal(expected())


@pytest.mark.parametrize("local", ["SCB", "weight_SCB", "SCBlock"])
def test_a_name_with_scb_is_a_name_like_others(local: str, tmp_path: Path) -> None:
    def named() -> Net:
        model = empty()
        model.add_module(local, nn.Linear(2, 2))
        return model

    tensors = state() | {f"{local}.weight": torch.full((2, 2), 7.0), f"{local}.bias": torch.ones(2)}
    folder = written(tmp_path, tensors)
    for placed in ({"": "cpu"}, {"": "disk"}):
        found = planner.state_dict(planner.load(folder, named(), placed))
        assert found[f"{local}.weight"].equal(torch.full((2, 2), 7.0))


def test_names_of_other_models_are_renamed(tmp_path: Path) -> None:
    tensors = {f"old.{name}": value for name, value in state().items()}
    folder = written(tmp_path, tensors)
    refused(folder, empty(), {"": "cpu"})
    renames: tuple[Any, ...] = (
        lambda name: name.removeprefix("old."),
        {name: name.removeprefix("old.") for name in tensors},
    )
    for rename in renames:
        model = planner.load(folder, empty(), ALTERNATING, rename=rename)
        with torch.no_grad():
            assert model(X).equal(expected())


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
