"""What kernels allocate by themselves is recorded, too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from planner.memory.recording.session import RecordedRun, record_run
from planner.memory.replay import RunPlacement, replay

WIDTH, TOKENS = 8, 32


class Normed(nn.Module):
    """Normalises what it gets, as it lies or turned around."""

    def __init__(self, *, is_turned: bool) -> None:
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.is_turned = is_turned
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.transpose(1, 2) if self.is_turned else x)


@pytest.mark.parametrize(("is_turned", "copies"), [(False, 0), (True, 1)])
def test_a_norm_copies_what_lies_otherwise_than_its_shape(is_turned: bool, copies: int) -> None:
    """The input, its copy, the result, and two numbers for each row."""
    shape = (2, WIDTH, TOKENS) if is_turned else (2, TOKENS, WIDTH)
    run = RecordedRun(inputs={"x": (shape, torch.float32)}, steps=0)
    tape = record_run(Normed(is_turned=is_turned), ["norm"], run)
    found = replay(tape, RunPlacement(execution={}, main_device=0))
    whole = 4 * 2 * TOKENS * WIDTH
    assert found["prefill"][0] == (2 + copies) * whole + 2 * 4 * 2 * TOKENS
