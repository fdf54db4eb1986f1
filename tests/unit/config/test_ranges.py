"""Every number of the settings has a range, told with its path and origin in every source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.config import Stack
from planner.config.types import Classes, MappingType, Type, schema_of
from planner.errors import InvalidConfigError
from planner.settings.schema import Settings

RANGES = {
    "strategy.search_steps": (0, 2**53),
    "staging_blocks": (1, 1000),
    **{
        f"model.{name}": (0, 2**53)
        for name in (
            "num_hidden_layers",
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        )
    },
}
HUGE = (10**30, 2**64, 2**63, 10**5000, -(10**30))


def leaves(cls: type, path: str = "") -> Iterator[tuple[str, Type]]:
    for name, field in schema_of(cls).fields.items():
        if isinstance(field.type.tree, Classes):
            for member in field.type.tree.classes:
                yield from leaves(member, f"{path}{name}.")
        else:
            yield f"{path}{name}", field.type


def takes_any_number(kind: Type) -> bool:
    inner = kind.tree.value if isinstance(kind.tree, MappingType) else kind
    for number in (*HUGE, -1):
        try:
            inner.take(number)
        except ValueError:
            continue
        if number < 0:
            return True
    return False


def test_no_setting_takes_a_number_below_its_range() -> None:
    """Also those that are added later: a plain int or float would."""
    assert [path for path, kind in leaves(Settings) if takes_any_number(kind)] == []


def stacks(tmp_path: Path, path: str, value: int) -> Iterator[tuple[str, Stack[Settings]]]:
    keys = path.split(".")
    nested: Any = value
    for key in reversed(keys):
        nested = {key: nested}
    yield "keyword arguments at test_ranges.py", Stack(Settings).set(nested)
    yield "import at test_ranges.py", Stack(Settings).imported(nested)
    if len(str(abs(value)) if abs(value) < 10**4000 else "") > 0:
        (tmp_path / "a.json").write_text(json.dumps(nested))
        yield "a.json:1:", Stack(Settings).file(tmp_path / "a.json")
        (tmp_path / "a.yaml").write_text(json.dumps(nested))
        yield "a.yaml:1:", Stack(Settings).file(tmp_path / "a.yaml")
        yield f"`--set {path}={value}"[:100], Stack(Settings).arguments(["--set", f"{path}={value}"])
        name = "PLANNER_" + path.upper().replace(".", "__")
        yield f"environment {name}", Stack(Settings).environment({name: str(value)})


@pytest.mark.parametrize("path", RANGES)
@pytest.mark.parametrize(
    "which", ["below", "above", *HUGE], ids=lambda value: value if isinstance(value, str) else "huge"
)
def test_a_number_out_of_its_range_names_path_and_origin(tmp_path: Path, path: str, which: Any) -> None:
    least, most = RANGES[path]
    value = {"below": least - 1, "above": most + 1}.get(which, which)
    for where, stack in stacks(tmp_path, path, value):
        with pytest.raises(InvalidConfigError) as caught:
            stack.resolve()
        text = str(caught.value)
        assert f"{path}: expected an int from {least} to {most}" in text
        assert where in text
        assert len(text) < 1500


@pytest.mark.parametrize("path", RANGES)
def test_the_ends_of_a_range_are_taken(tmp_path: Path, path: str) -> None:
    for value in RANGES[path]:
        for _, stack in stacks(tmp_path, path, value):
            assert stack.resolve().answers[tuple(path.split("."))].value == value


@pytest.mark.parametrize("path", RANGES)
@pytest.mark.parametrize("wrong", [True, 1.0, "1", None], ids=str)
def test_an_int_stays_exact(path: str, wrong: Any) -> None:
    if wrong is None and path.startswith("model."):
        return  # nobody knows it
    with pytest.raises(InvalidConfigError, match=f"{path}: expected an int"):
        Stack(Settings).set({tuple(path.split(".")): wrong}).resolve()


@pytest.mark.parametrize("share", ["100.000001%", "101%", "999%", "999.9%"])
def test_headroom_is_no_more_than_the_whole(share: str) -> None:
    assert Stack(Settings).set(headroom={0: "100%"}).resolve().config.headroom == {0: "100%"}
    with pytest.raises(InvalidConfigError, match="expected a share from 0% to 100%"):
        Stack(Settings).set(headroom={0: share}).resolve()


def model() -> nn.Module:
    return nn.Sequential(*(nn.Linear(10, 10, bias=False, device="meta") for _ in range(4)))


@pytest.mark.parametrize("staged", [1, 2, 1000])
@pytest.mark.parametrize("steps", [0, 1, 2**53])
def test_plans_hold_at_the_ends(staged: int, steps: int) -> None:
    for budgets in ({0: 1600}, {0: 1000, "cpu": 5000}, {0: 2**40, "cpu": 2**40}):
        said: dict[str, Any] = {"staging_blocks": staged, "strategy": {"search_steps": steps}}
        try:
            plan = planner.plan(model(), max_memory=budgets, **said)
        except planner.InfeasibleError:
            continue
        for device in plan.devices:
            assert device.used_bytes + device.reserved_bytes <= device.budget_bytes
        if plan.offloaded_bytes["cpu"]:
            assert plan.devices[0].reserved_bytes == 400 * staged or staged > 2


def test_a_config_file_with_absurd_facts_is_an_error_that_names_it(tmp_path: Path) -> None:
    from planner.settings.model_facts import import_config

    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "llama", "hidden_size": -1, "num_hidden_layers": 10**30}))
    with pytest.raises(InvalidConfigError) as caught:
        Stack(Settings).imported(import_config(str(file))).resolve()
    assert {problem.path for problem in caught.value.problems} == {
        ("model", "hidden_size"),
        ("model", "num_hidden_layers"),
    }
    assert "config.json:1:" in str(caught.value)


def test_a_dtype_of_torch_is_a_word() -> None:
    assert Stack(Settings).set(dtype=torch.float16).resolve().config.dtype == "float16"
