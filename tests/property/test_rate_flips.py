"""The rate that a plan says a piece hangs on: below it the piece goes one way, above it the other, by planning anew."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import planner
from planner.devices.machine import Machine
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import Rate
from planner.plans.timing import OtherWay

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "vocab_size": 4_000,
    "num_hidden_layers": 4,
}


def drawn_model(rng: Random) -> nn.Module:
    with torch.device("meta"):
        if rng.random() < 0.5:
            return LlamaForCausalLM(LlamaConfig(**SIZES))
        return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2))


def drawn_machine(rng: Random) -> Machine:
    def rate(low: float, high: float) -> Rate:
        return Rate.of_user(round(10 ** rng.uniform(low, high)))

    card = MachineDevice(
        id=0, kind="cuda", memory_bytes_per_s=rate(10, 11), flops_per_s={"float32": rate(12, 13)}
    )
    host = MachineDevice(
        id="cpu", kind="cpu", memory_bytes_per_s=rate(7.5, 9), flops_per_s={"float32": rate(9, 11)}
    )
    link = Link(source="cpu", to=0, bytes_per_s=rate(8, 9), latency_ps=rate(4, 6))
    return Machine(devices=(card, host), links=(link,))


def changed(machine: Machine, other: OtherWay, factor: float) -> Machine:
    """With the rate that is named a little beside the value that is named."""
    rate = Rate.of_user(max(1, round(other.even_per_s * factor)))
    card, host = machine.devices
    if other.rate == "link":
        return Machine(devices=machine.devices, links=(replace(machine.links[0], bytes_per_s=rate),))
    if other.rate == "memory":
        host = replace(host, memory_bytes_per_s=rate)
    else:
        host = replace(host, flops_per_s={"float32": rate})
    return Machine(devices=(card, host), links=machine.links)


def test_beyond_the_rate_that_is_named_a_piece_goes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it may be fetched or run beside; a machine in which one of both is better whatever the room."""
    # With these pins `auto` has the host run the embedding, and its plans, which are taken then, name no rates.
    monkeypatch.setattr("planner.planning.timed.plans_of_auto", lambda problem: iter(()))
    rng, turned, seen = Random(5), 0, set[str]()
    for _ in range(60):
        model, machine = drawn_model(rng), drawn_machine(rng)
        size = sum(each.nbytes for each in model.parameters())
        parts = sum(each.nbytes for name, each in model.named_parameters() if ".mlp." in name)
        settings: dict[str, Any] = {
            "max_memory": {0: size - parts + int(parts * rng.uniform(0.3, 0.8)), "cpu": 3 * size},
            "headroom": None,
            "strategy": {"type": "latency", "tokens": rng.choice([1, 64])},
            # Parts alone have a choice: no stretch is the host's, and there is room to fetch, because the embedding is fetched.
            "pin": {"model.embed_tokens": "cpu", "model.layers.*.self_attn": 0, "lm_head": 0},
        }
        timing = planner.plan(model, machine=machine, **settings).timing
        assert timing is not None
        found = next(
            (each for each in timing.pieces if each.other and each.way != "resident" and each.other.has_room),
            None,
        )
        if found is None or found.other is None:
            continue
        other = found.other
        way_now = found.way
        is_above = other.per_s > other.even_per_s
        near = planner.plan(model, machine=changed(machine, other, 1.05 if is_above else 0.95), **settings)
        far = planner.plan(model, machine=changed(machine, other, 0.95 if is_above else 1.05), **settings)
        ways = []
        for plan in (near, far):
            assert plan.timing is not None
            ways.append(next((each.way for each in plan.timing.pieces if each.name == found.name), None))
        if ways[0] != way_now:
            continue  # on the way there, something else of the plan has changed
        assert ways[1] != way_now, (found, ways)
        turned += 1
        seen.add(other.rate)
    assert turned >= 8
    assert "link" in seen and seen & {"memory", "flops"}


@pytest.mark.parametrize("tokens", [1, 64])
def test_a_plan_says_what_it_hangs_on(tokens: int) -> None:
    rng = Random(7)
    model, machine = drawn_model(rng), drawn_machine(rng)
    size = sum(each.nbytes for each in model.parameters())
    plan = planner.plan(
        model,
        machine=machine,
        max_memory={0: int(size * 0.4), "cpu": 3 * size},
        headroom=None,
        strategy={"type": "latency", "tokens": tokens},
    )
    assert plan.timing is not None
    for piece in plan.timing.pieces:
        text = planner.explain(plan, piece.name)
        said = "as long, if" in text if piece.other else "room decides" in text
        assert said, text
    assert "as long, if" in planner.explain(plan, "")
    assert planner.Plan.from_json(plan.to_json()).timing == plan.timing
