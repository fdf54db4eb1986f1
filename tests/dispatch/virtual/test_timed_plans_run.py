"""The quantities that plans by time are made of are those of a run, without a clock: what runs where, and how many bytes cross."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import planner
from planner.devices.machine import Machine
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import Rate
from planner.names import device_of
from rig.accelerators import Accelerators

WIDTH, TOKENS, HEADS = 256, 8, 16
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 384,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "attn_implementation": "eager",
    "use_cache": False,
}
IDS = torch.arange(TOKENS)[None]
ACTIVATION_BYTES = TOKENS * WIDTH * 4
# Once a forward: tables of rotation and positions for each device, a mask, and the result.
EXTRAS_BYTES = 2 * TOKENS * (WIDTH // HEADS) * 4 + TOKENS * 8 + TOKENS * TOKENS * 4 + TOKENS * 8
LOGITS_BYTES = TOKENS * 128 * 4


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=5)).eval()
    config = MixtralConfig(**SIZES, num_hidden_layers=4, num_local_experts=4, num_experts_per_tok=2)
    return MixtralForCausalLM(config).eval()


def drawn_plan(model: nn.Module, draw: random.Random) -> planner.Plan:
    """A plan for a machine with rates of any size, which decide what is resident, fetched, and run by the host."""

    def rate(low: float, high: float) -> Rate:
        return Rate.of_user(round(10 ** draw.uniform(low, high)))

    def device(key: int | str) -> MachineDevice:
        kind = "cpu" if key == "cpu" else "virtual"
        flops = {"float32": rate(8, 12)}
        return MachineDevice(
            id=key, kind=kind, memory_bytes_per_s=rate(7, 10), flops_per_s=flops, launch_ps=rate(3, 7)
        )

    links = tuple(
        Link(source="cpu", to=key, bytes_per_s=rate(6, 10), latency_ps=rate(3, 7)) for key in (0, 1)
    )
    machine = Machine(devices=(device(0), device(1), device("cpu")), links=links)
    size = sum(each.nbytes for each in model.parameters())
    budgets = {0: int(size * draw.uniform(0.1, 0.7)), 1: int(size * draw.uniform(0.1, 0.7)), "cpu": 2 * size}
    strategy: dict[str, Any] = {
        "type": draw.choice(("latency", "throughput", "pipeline")),
        "order": draw.choice(("given", "any")),
    }
    return planner.plan(
        model, max_memory=budgets, headroom=None, machine=machine, strategy={**strategy, "tokens": TOKENS}
    )  # type: ignore[arg-type]


def hops(plan: planner.Plan) -> Iterator[tuple[int | str, int | str]]:
    """From piece to piece; what a layer calls elsewhere gives its result back to where the rest of the layer runs."""
    timing = plan.timing
    assert timing is not None
    here: int | str | None = None
    for piece in timing.pieces:
        runner = "cpu" if piece.way == "beside" else piece.device
        if piece.name.endswith(("mlp", "experts")):
            if runner != here:
                assert here is not None
                yield here, runner
                yield runner, here
        else:
            if here not in (None, runner):
                yield here, runner
            here = runner


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.sweep) for seed in range(4, 40))]
)
def test_bytes_that_cross_are_those_of_the_plan(
    virtual_accelerators: Accelerators, kind: str, seed: int
) -> None:
    model = model_of(kind)
    with torch.no_grad():
        wanted = model(IDS).logits
    plan = drawn_plan(model, random.Random(seed))
    timing = plan.timing
    assert timing is not None
    fetched_bytes = sum(
        weight.nbytes
        for name, weight in model.named_parameters()
        if device_of(name, plan.device_map) == "cpu"
        and device_of(name, plan.execution_map) not in (None, "cpu")
    )
    planner.dispatch(model, plan)
    virtual_accelerators.reset()
    with torch.no_grad():
        logits = model(IDS).logits
    found = virtual_accelerators.traffic()
    assert torch.equal(logits.cpu(), wanted)
    crossed = list(hops(plan))
    up = sum(1 for source, to in crossed if source == "cpu" and to != "cpu")
    down = sum(1 for source, to in crossed if source != "cpu" and to == "cpu")
    across = sum(1 for source, to in crossed if "cpu" not in (source, to))
    router_bytes = (
        2 * TOKENS * (8 + 4) if kind == "mixtral" else 0
    )  # which experts, and how much of each, beside what they get
    experts_hops = sum(
        1 for piece in timing.pieces if piece.way == "beside" or piece.name.endswith("experts")
    )
    more_up = found.to_device_bytes - fetched_bytes - up * ACTIVATION_BYTES
    more_down = found.to_host_bytes - down * ACTIVATION_BYTES
    more_across = found.between_devices_bytes - across * ACTIVATION_BYTES
    allowed = 3 * EXTRAS_BYTES + experts_hops * router_bytes
    assert 3 * EXTRAS_BYTES < ACTIVATION_BYTES  # one that nobody counts is seen
    assert 0 <= more_up <= allowed, (more_up, crossed)
    assert 0 <= more_down <= allowed + LOGITS_BYTES, (more_down, crossed)
    assert 0 <= more_across <= allowed + LOGITS_BYTES, (more_across, crossed)
