"""Layers that are alike are run three times, and the recording is that of running all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.memory.recording import alike
from planner.memory.recording.copies import copied
from planner.memory.recording.session import RecordedRun, record_run
from planner.memory.tape import ENTER, MADE, PHASE
from tiny_families import FAMILIES, family

INPUTS = {"input_ids": ((2, 24), torch.long)}
RUN = RecordedRun(inputs=INPUTS, options={"use_cache": True}, steps=1)
PLAIN = RecordedRun(inputs=INPUTS)


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Places of the calls that were not run."""
    places: list[int] = []
    original = alike._repeated

    def noted(recorder: Any, found: Any, call: Any) -> Any:
        places.append(found.place)
        return original(recorder, found, call)

    monkeypatch.setattr(alike, "_repeated", noted)
    yield places


def blocks_of(model: nn.Module) -> list[str]:
    return list(planner.plan(model, max_memory={0: "1TiB"}, headroom=None).block_bytes)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_events_are_those_of_running_all(name: str, repeated: list[int]) -> None:
    model = family(name, 10)
    blocks = blocks_of(model)
    found = record_run(model, blocks, RUN)
    assert repeated
    assert found == record_run(model, blocks, RUN, all_layers=True)


class Layer(nn.Module):
    """Adds its input to what it computes; `extra` tells where it computes more."""

    def __init__(self, number: int, extra: int) -> None:
        super().__init__()
        self.layer_idx = number
        self.extra = None if extra < 0 else extra
        self.inner = nn.Linear(4, 4)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.layer_idx == self.extra:
            states = states * 2
        return states + self.inner(states)


class Net(nn.Module):
    _no_split_modules = ("Layer",)

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.layers = nn.ModuleList(Layer(number, extra) for number in range(8))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        states = self.embed(input_ids)
        for layer in self.layers:
            states = layer(states)
        return states


@pytest.mark.parametrize("extra", [-1, 0, 1, 7])
def test_a_layer_that_computes_otherwise_is_noticed(extra: int, repeated: list[int]) -> None:
    """The first, the second and the last are run; where one of them differs, all are."""
    model = Net(extra)
    blocks = ["embed", *(f"layers.{number}" for number in range(8))]
    found = record_run(model, blocks, PLAIN)
    assert found == record_run(model, blocks, PLAIN, all_layers=True)
    computed = [event[3] for event in found.events if event[0] == MADE and event[3] >= 2]
    assert len(computed) == 8 * 2 + (extra >= 0)
    assert bool(repeated) == (extra in (-1, 7))


def test_layers_with_hooks_or_other_numbers_in_them_are_run(repeated: list[int]) -> None:
    model = Net(-1)
    for number, layer in enumerate(model.layers):
        layer.inner.register_forward_hook(lambda *_: None)
        layer.scale = number
    tape = record_run(model, [f"layers.{number}" for number in range(8)], PLAIN)
    assert not repeated
    assert sum(event[0] == ENTER for event in tape.events) == 8
    assert [event[1] for event in tape.events if event[0] == PHASE] == ["prefill"]


def test_copies_of_modules_are_those_of_deepcopy() -> None:
    model = family("gemma3", 2)
    model.note = [model.lm_head]
    ours, theirs = copied(model, {}), copy.deepcopy(model)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert ours.note[0] is ours.lm_head
    for (name, mine), (other, his) in zip(ours.named_modules(), theirs.named_modules(), strict=True):
        assert (name, type(mine), list(vars(mine))) == (other, type(his), list(vars(his)))
        assert mine is not dict(model.named_modules())[name]
