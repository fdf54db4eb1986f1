"""`verify` on a machine with a real card: plans for it, for more cards than it has, and what dispatching does."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn

import planner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

X = torch.linspace(-1, 1, 16).reshape(2, 8)


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.rnn, self.conv = nn.LSTM(8, 8), nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.rnn(self.a(x) + self.b(x))[0]
        made: torch.Tensor = self.conv(h[None])
        return made


MAPS: dict[str, dict[str, Any]] = {
    "one card": {"": 0},
    "offloaded": {"a": 0, "b": "cpu", "rnn": "cpu", "conv": 0},
    "the card alone computes": {"a": "cpu", "b": 0, "rnn": 0, "conv": "cpu"},
}


@pytest.mark.parametrize("name", MAPS)
def test_as_dispatching_does(name: str) -> None:
    model = Summed().eval().requires_grad_(False)
    gc.collect()  # what earlier tests have left must not go meanwhile
    used = torch.cuda.memory_allocated()
    found = planner.verify(model, MAPS[name], X)
    assert found.runs and torch.cuda.memory_allocated() == used
    planner.dispatch(model, MAPS[name])
    model(X.to(0) if name == "one card" else X)
    assert planner.crossings(model) == found.crossings


def test_the_cpu_computes_a_part() -> None:
    model = Summed().eval().requires_grad_(False)
    where = {"a": 0, "b": "cpu", "rnn": 0, "conv": 0}
    found = planner.verify(model, where, X)
    assert found.runs
    planner.dispatch(model, where, execution_map={"b": 0})
    model(X)
    assert planner.crossings(model) == found.crossings


def test_more_cards_than_there_are() -> None:
    found = planner.verify(Summed(), {"a": 5, "b": 6, "rnn": 7, "conv": "cpu"}, X)
    assert found.runs and [row.operator for row in found.crossings] == ["add"]


def test_random_numbers_of_the_card_go_on_where_they_were() -> None:
    state = torch.cuda.get_rng_state(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)).train()
    assert planner.verify(model, {"0": 0, "2": "cpu"}, X).runs
    assert torch.cuda.get_rng_state(0).equal(state)
