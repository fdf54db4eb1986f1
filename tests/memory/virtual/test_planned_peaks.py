"""What a plan predicts for a workload is what a run of it takes."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

import planner
from measured_peaks import measured_peaks
from rig import Accelerators

WIDTH, ROWS = 256, 64


class Narrowing(nn.Module):
    """A large layer before a small one, so that the first need not be on the first device."""

    main_input_name = "x"

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.second = nn.Linear(WIDTH, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_the_inputs_go_to_the_first_device_that_holds_anything(virtual_accelerators: Accelerators) -> None:
    """Which need not be the one that runs the first block."""
    model = Narrowing()
    plan = planner.plan(
        model,
        max_memory={0: 300_000, 1: 460_000},
        headroom=None,
        workload={
            "context_length": 1,
            "batch_size": ROWS,
            "cache": "none",
            "inputs": {"x": ["batch", WIDTH]},
            "allocator_margin": 0,
            "attention_kernel": "math",
        },
    )
    assert plan.device_map == {"first": 1, "second": 0}
    planner.dispatch(model, plan)
    given = {"x": torch.ones(ROWS, WIDTH)}
    real = measured_peaks(model, virtual_accelerators, given, steps=0, options={})["prefill"]
    assert dict(plan.predicted_peaks["prefill"]) == {device: real[device] for device in (0, 1)}
