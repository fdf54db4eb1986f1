"""Blocks that a glob took apart, with real values: experts on the CPU, the rest of their layers on an accelerator."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import planner
from planner.names import device_of
from tiny_models import TINY, built


@pytest.mark.parametrize("execute_offloaded", ["accelerator", "cpu"])
@pytest.mark.parametrize("pins", [{"*.experts": "cpu"}, {"*.experts": "cpu", "*.q_proj": 1}])
@torch.no_grad()
def test_experts_on_the_cpu_answer_as_ever(pins: dict[str, int | str], execute_offloaded: str) -> None:
    model: Any = built("mixtral_eager")
    expected = model(**TINY["mixtral_eager"].inputs("cpu")).logits
    plan = planner.plan(
        model,
        max_memory={0: "1GiB", 1: "1GiB", "cpu": "1GiB"},
        pin=pins,
        execute_offloaded=execute_offloaded,  # type: ignore[arg-type]
    )
    assert device_of("model.layers.0.mlp.experts", plan.device_map) == "cpu"
    assert device_of("model.layers.0.mlp.gate", plan.device_map) != "cpu"
    planner.dispatch(model, plan)
    found = model(**TINY["mixtral_eager"].inputs("cpu")).logits
    torch.testing.assert_close(found.cpu(), expected)
