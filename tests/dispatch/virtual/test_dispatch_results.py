"""What a dispatched model returns, back where its inputs lie: each tensor once, however many places it has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

import planner
from rig import Accelerators

ROWS = 4096
RESULT_BYTES = 4 * ROWS * 2


class Attributed(OrderedDict[str, torch.Tensor]):
    """Items that are attributes as well."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__(logits=logits)
        self.logits = logits


@dataclass
class Record:
    logits: torch.Tensor
    again: torch.Tensor


class Told(nn.Module):
    """Returns what its last layer gives in some container."""

    def __init__(self, container: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
        self.container = container

    def forward(self, x: torch.Tensor) -> Any:
        return self.container(self.last(self.first(x)))


CONTAINERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "transformers": lambda logits: CausalLMOutput(logits=logits),
    "attributed": Attributed,
    "record": lambda logits: Record(logits, logits),
    "tuple": lambda logits: (logits, [logits]),
    "nested": lambda logits: {"inner": CausalLMOutput(logits=logits), "outer": logits},
}


@pytest.mark.parametrize("name", CONTAINERS)
@torch.no_grad()
def test_a_result_is_copied_once(virtual_accelerators: Accelerators, name: str) -> None:
    model = planner.dispatch(Told(CONTAINERS[name]), {"first": 0, "last": 1})
    given = torch.ones(ROWS, 2).to("virtual:0")
    before = virtual_accelerators.used_bytes(0)
    torch.accelerator.reset_peak_memory_stats(0)
    output = model(given)
    held, most = virtual_accelerators.used_bytes(0) - before, virtual_accelerators.peak_bytes(0) - before
    del output
    assert held == RESULT_BYTES
    assert most == RESULT_BYTES


@torch.no_grad()
def test_an_output_has_one_tensor_as_item_and_as_attribute() -> None:
    model = planner.dispatch(Told(CONTAINERS["transformers"]), {"first": 0, "last": 1})
    output = model(torch.ones(2, 2).to("virtual:0"))
    assert output["logits"] is output.logits
    assert output.logits.device.index == 0
