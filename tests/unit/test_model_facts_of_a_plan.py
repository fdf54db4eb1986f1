"""What a live model says of itself, below what the user says: read and resolved once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from planner import plan
from planner.config import Stack
from planner.errors import CheckpointError, InvalidConfigError


class Configuration:
    model_type = "llama"

    def __init__(self, **values: Any) -> None:
        self.values = values

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "llama", **self.values}


def model(**values: Any) -> nn.Module:
    made = nn.Sequential(nn.Linear(2, 2, device="meta"))
    made.config = Configuration(**values)  # type: ignore[assignment]
    return made


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[Stack[Any]]:
    """Every stack that was resolved."""
    calls: list[Stack[Any]] = []
    plain = Stack.resolve

    def resolve(stack: Stack[Any]) -> Any:
        calls.append(stack)
        return plain(stack)

    monkeypatch.setattr(Stack, "resolve", resolve)
    return calls


def test_settings_of_a_live_model_are_resolved_once(resolved: list[Stack[Any]]) -> None:
    made = plan(model(hidden_size=64, num_attention_heads=4), max_memory={0: 100})
    assert len(resolved) == 1
    assert made.settings["model.head_dim"].value == 16
    assert made.settings["model.hidden_size"].rank == "imported"


def test_the_user_is_above_the_facts() -> None:
    made = plan(model(hidden_size=64), max_memory={0: 100}, model={"hidden_size": 32})
    assert (made.settings["model.hidden_size"].value, made.settings["model.hidden_size"].rank) == (32, "user")


def test_facts_that_make_no_sense_are_left_out_with_a_note() -> None:
    made = plan(model(hidden_size="wide"), max_memory={0: 100})
    assert [
        note for note in made.source.notes if "makes no sense" in note and "its facts are left out" in note
    ]
    assert made.settings["model.hidden_size"].value is None


@pytest.mark.parametrize("facts", [{}, {"hidden_size": "wide"}, {"hidden_size": 64}])
def test_wrong_settings_are_told_alone_whatever_the_facts(facts: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        plan(model(**facts), max_memory={0: 100}, staging_blocks=0)
    assert [problem.path for problem in caught.value.problems] == [("staging_blocks",)]


def test_wrong_settings_are_told_before_a_wrong_model(tmp_path: Path) -> None:
    looped: Any = nn.Sequential(nn.Linear(2, 2))
    looped[0].again = looped
    for source in (looped, 7, tmp_path / "none"):
        with pytest.raises(InvalidConfigError):
            plan(source, staging_blocks=0)
    with pytest.raises(CheckpointError):
        plan(tmp_path / "none", max_memory={0: 100})
