"""What modules have as plain attributes, and what a forward writes into these."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from planner.memory.recording.session import RecordedRun, record_run
from planner.memory.tape import DROPPED, MADE

ROWS, WIDTH = 2, 8


class Keeping(nn.Module):
    """Keeps its last result as a plain attribute, as recurrent layers keep their states."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.state: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        if self.state is None or len(self.state) != len(x):
            self.state = torch.zeros_like(x)
        self.state = x + self.state.to(x.device)
        return self.state


RUN = RecordedRun(inputs={"x": ((ROWS, WIDTH), torch.float32)}, steps=0)


def test_a_model_that_has_run_is_recorded_as_one_that_has_not() -> None:
    """Its state has several elements, and is copied as it is."""
    model = Keeping()
    before = [event[2] for event in record_run(model, ["layer"], RUN).events if event[0] == MADE]
    model(torch.ones(ROWS + 1, WIDTH))
    state = model.state
    assert state is not None
    after = [event[2] for event in record_run(model, ["layer"], RUN).events if event[0] == MADE]
    assert before == after
    assert model.state is state


class Replacing(nn.Module):
    """Puts something else in the place of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.table = nn.Buffer(torch.ones(WIDTH))
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.table = torch.zeros(2 * WIDTH, device=x.device)
        return self.layer(x) * self.table[:WIDTH]


def test_a_buffer_that_is_replaced_is_gone() -> None:
    """Once, with its bytes, and of no copy."""
    tape = record_run(Replacing(), ["table", "layer"], RUN)
    assert [event for event in tape.events if event[0] == DROPPED] == [(DROPPED, 1, 4 * WIDTH, -1)]
