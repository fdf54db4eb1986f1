"""Recordings are kept for one model, as long as it is as it was: another one, or a change, is recorded anew."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

import planner
from planner.memory.recording import workloads
from planner.memory.recording.kept import state_of
from planner.memory.recording.session import RecordedRun, record_run
from planner.memory.tape import Tape
from tiny_models import built

ROOM: dict[Any, int] = {0: 1 << 26}


class Repeating(nn.Module):
    """Has as many rows in the middle as its attribute says, which no weight tells."""

    def __init__(self, said: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.said = said

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        times = self.said if isinstance(self.said, int) else self.said.times
        made: torch.Tensor = self.last(torch.cat([self.first(x)] * times))
        return made


def activation_bytes(model: nn.Module, **workload: Any) -> int:
    wanted: Any = {"context_length": 16, "allocator_margin": 0, **workload}
    return planner.plan(model, max_memory=ROOM, workload=wanted).devices[0].activation_bytes


def of_repeating(model: nn.Module) -> int:
    return activation_bytes(model, inputs={"x": ["batch", "context", 8]})


@pytest.mark.parametrize("said", [int, lambda times: SimpleNamespace(times=times)], ids=["plain", "object"])
def test_models_of_one_class_whose_attributes_differ(said: Any) -> None:
    few, many = of_repeating(Repeating(said(2))), of_repeating(Repeating(said(50)))
    assert many > 20 * few
    assert of_repeating(Repeating(said(2))) == few


def test_an_attribute_that_changes() -> None:
    model = Repeating(SimpleNamespace(times=2))
    few = of_repeating(model)
    model.said.times = 50
    assert of_repeating(model) > 20 * few


def test_a_forward_that_its_class_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forward = built("llama"), LlamaMLP.forward
    before = activation_bytes(model)

    def wide(self: Any, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = forward(self, torch.cat([x] * 64))
        return made[: x.shape[0]]

    monkeypatch.setattr(LlamaMLP, "forward", wide)
    assert activation_bytes(model) > 10 * before


def test_attention_of_a_part() -> None:
    pictures = {"inputs": {"pixel_values": ["batch", 3, 8, 8]}, "context_length": 256}
    fused: Any = built("llava")
    eager: Any = built("llava")
    before = activation_bytes(fused, **pictures)
    eager.set_attn_implementation({"text_config": "eager", "vision_config": "eager"})
    assert activation_bytes(eager, **pictures) > 1.5 * before


def test_the_same_model_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[RecordedRun] = []

    def counted(model: nn.Module, blocks: Any, run: RecordedRun) -> Tape:
        runs.append(run)
        return record_run(model, blocks, run)

    monkeypatch.setattr(workloads, "record_run", counted)
    model = built("llama")
    assert activation_bytes(model) == activation_bytes(model)
    once = len(runs)
    activation_bytes(built("llama"))
    assert 0 < once == len(runs) - once


def test_states_keep_nothing_alive_and_run_no_code() -> None:
    class Loud:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

        def __repr__(self) -> str:
            raise RuntimeError

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = object.__hash__

    model: Any = Repeating(Loud())
    model.itself = [model, {"deep": (Loud(), {Loud(), 3})}]
    model.late = lambda: later  # a name that is not there yet
    assert state_of(model) == state_of(model)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
    later: int = 0
