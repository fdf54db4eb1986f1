"""Checkpoints of another model: every name, shape and type that does not fit, in one error; and what may be lacking."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from layered_net import (
    ALTERNATING,
    Net,
    X,
    empty,
    expected,
    findings_of,
    part_of,
    refused,
    state,
    written,
)
from planner import OffloadError, PlannerError
from tensor_files import write_file

MAPS: dict[str, dict[str, Any]] = {"cpu": {"": "cpu"}, "disk": {"": "disk"}, "alternating": ALTERNATING}


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
