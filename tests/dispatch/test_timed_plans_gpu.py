"""What is modelled of a step is what a card takes, with a machine that was probed: of layers that fit, are fetched and run on the host.

On the virtual accelerators (`benches/gpu.py --virtual`) all is done but the comparison of figures: there, the host computes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import planner
from planner.devices.machine import Machine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator"),
]

IS_REAL = torch.cuda.is_available()
SHARES = (1.5, 0.75, 0.5, 0.3)
"""Of the model's bytes, what the card may hold."""


def llama() -> nn.Module:
    wide = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 6, "vocab_size": 32000}
    narrow = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "vocab_size": 128}
    dtype = torch.bfloat16 if IS_REAL else torch.float32
    config = LlamaConfig(
        **(wide if IS_REAL else narrow),
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
        dtype=dtype,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    seconds = 5.0 if IS_REAL else 0.3
    return planner.probe(folder=tmp_path_factory.mktemp("disk"), seconds=seconds).machine


def plans(model: nn.Module, machine: Machine) -> Iterator[planner.Plan]:
    """Five: all on the card, three with less and less room, and one of `auto`, whose blocks are all fetched that are offloaded."""
    size = sum(each.nbytes for each in model.parameters())
    for share in SHARES:
        yield planner.plan(
            model,
            max_memory={0: int(size * share), "cpu": 2 * size},
            headroom=None,
            machine=machine,
            strategy={"type": "latency", "order": "any"},
        )
    yield planner.plan(model, max_memory={0: int(size * 0.5), "cpu": 2 * size}, headroom=None)


def step_s(model: nn.Module, plan: planner.Plan) -> float:
    """The median of a decode step."""
    planner.dispatch(model, plan)
    device = torch.device(torch.accelerator.current_accelerator() or "cpu")
    ids, times = torch.zeros(1, 1, dtype=torch.long, device=device), []
    with torch.no_grad():
        for _ in range(8):
            torch.accelerator.synchronize()
            begun = time.perf_counter()
            model(ids)
            torch.accelerator.synchronize()
            times.append(time.perf_counter() - begun)
    planner.undispatch(model)
    return statistics.median(times[3:])


def test_a_decode_step_takes_what_is_modelled(machine: Machine) -> None:
    model = llama()
    found: list[tuple[float, float]] = []
    for plan in plans(model, machine):
        modelled: Any = planner.price(model, plan, tokens=1, machine=machine)
        found.append((modelled.latency_ps / 1e12, step_s(model, plan)))
    assert len(found) == len(SHARES) + 1
    assert all(modelled > 0 and measured > 0 for modelled, measured in found)
    if not IS_REAL:
        return
    for modelled, measured in found:
        assert 0.8 * modelled <= measured <= 1.2 * modelled, found
    for one, other in combinations(sorted(found), 2):
        assert one[1] <= other[1] or other[0] < 1.1 * one[0], found
