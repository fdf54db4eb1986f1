"""A plan is plain data: what becomes of its model's files and configuration afterwards does not reach it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import planner
from planner import Plan

CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}


def folder(place: Path) -> Path:
    made = place / "model"
    made.mkdir()
    save_file({f"layers.{index}.weight": torch.ones(4, 4) for index in range(3)}, made / "model.safetensors")
    (made / "config.json").write_text(json.dumps(CONFIG))
    return made


class Config:
    """A live configuration that counts how often it is read."""

    model_type = "llama"

    def __init__(self) -> None:
        self.values: dict[str, Any] = dict(CONFIG)
        self.reads = 0

    def to_dict(self) -> dict[str, Any]:
        """As transformers has it."""
        self.reads += 1
        return self.values


class Net(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(3))
        self.config = config


OPERATIONS: dict[str, Callable[[Plan], Any]] = {
    "to_json": lambda plan: plan.to_json(),
    "equal": lambda plan: plan == Plan.from_json(plan.to_json()),
    "hash": hash,
    "pickle": lambda plan: pickle.loads(pickle.dumps(plan)),
    "settings": lambda plan: (dict(plan.settings), dict(plan.provenance)),
}
BUDGETS = {0: 200, 1: 70}


def elsewhere(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (made.parent / "empty").mkdir()
    monkeypatch.chdir(made.parent / "empty")


def deleted(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(made)


def edited(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (made / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 77}))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("happens", [elsewhere, deleted, edited])
def test_a_plan_of_files_does_not_read_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, happens: Callable[..., None]
) -> None:
    made = folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    want, plan = (planner.plan("model", max_memory=BUDGETS) for _ in range(2))
    expected = OPERATIONS[operation](want)
    happens(made, monkeypatch)
    assert OPERATIONS[operation](plan) == expected
    assert plan.settings["model.num_hidden_layers"].value == 2


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_plan_of_a_live_model_does_not_ask_it_again(operation: str) -> None:
    config = Config()
    model = Net(config)
    want, plan = (planner.plan(model, max_memory=BUDGETS) for _ in range(2))
    expected, reads = OPERATIONS[operation](want), config.reads
    config.values["num_hidden_layers"] = 77
    model.config = None  # type: ignore[assignment]
    model.layers = nn.ModuleList()
    assert OPERATIONS[operation](plan) == expected
    assert config.reads == reads == 2


@pytest.mark.parametrize("said", ["wide", -1, 2.5, [8]])
def test_a_fact_that_makes_no_sense_stops_no_plan(tmp_path: Path, said: Any) -> None:
    made = folder(tmp_path)
    (made / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": said}))
    live = Net(Config())
    live.config.values["hidden_size"] = said
    for plan in (planner.plan(made, max_memory=BUDGETS), planner.plan(live, max_memory=BUDGETS)):
        assert "model.hidden_size" in plan.source.notes[-1] and "left out" in plan.source.notes[-1]
        assert plan.settings["model.num_hidden_layers"].value is None
        assert Plan.from_json(plan.to_json()) == plan


def test_a_configuration_that_cannot_be_read_stops_no_plan() -> None:
    class Broken(Config):
        def to_dict(self) -> dict[str, Any]:
            raise AttributeError("no attribute 'x'")

    plan = planner.plan(Net(Broken()), max_memory=BUDGETS)
    assert plan.source.notes == (
        "the model's configuration cannot be read (AttributeError: no attribute 'x'); its facts are left out",
    )


def test_what_the_user_says_wrongly_is_still_an_error() -> None:
    with pytest.raises(planner.InvalidConfigError, match="search_steps"):
        planner.plan(Net(Config()), max_memory=BUDGETS, strategy={"search_steps": -1})
