"""Prices of plans by time are what the plans say, pins leave none slower than `auto`, and files that contradict themselves are refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import planner
from planner.devices.machine import Machine
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import Rate
from small_llamas import llama, size_of


def drawn_machine(draw: random.Random, count: int = 1) -> Machine:
    def rate(low: float, high: float) -> Rate:
        return Rate.of_user(round(10 ** draw.uniform(low, high)))

    devices = [
        MachineDevice(
            id=key,
            kind="cpu" if key == "cpu" else "cuda",
            memory_bytes_per_s=rate(8, 9) if key == "cpu" else rate(9, 11),
            flops_per_s={"float32": rate(9, 10) if key == "cpu" else rate(11, 12)},
            launch_ps=rate(3, 6),
        )
        for key in (*range(count), "cpu")
    ]
    links = [
        Link(source="cpu", to=key, bytes_per_s=rate(7, 9), latency_ps=rate(3, 6)) for key in range(count)
    ]
    return Machine(devices=tuple(devices), links=tuple(links))


def test_what_is_fetched_hides_behind_what_the_host_runs_in_a_price_as_in_the_plan() -> None:
    """With two staging blocks, on one card: a plan and its price differ by hops alone that neighbours on the host spare."""
    draw, model, compared = random.Random(5), llama(3), 0
    size = size_of(model)
    for _ in range(60):
        machine, tokens = drawn_machine(draw), draw.choice((1, 16, 256))
        budgets = {0: int(size * draw.uniform(0.3, 0.7)), "cpu": 2 * size}
        plan = planner.plan(
            model,
            max_memory=budgets,
            headroom=None,
            machine=machine,
            staging_blocks=2,
            strategy={"type": "latency", "tokens": tokens},
        )  # type: ignore[call-overload, unused-ignore]
        assert plan.timing is not None
        priced = planner.price(model, plan, machine=machine, tokens=tokens, staging_blocks=2)
        ways = [piece.way for piece in plan.timing.pieces]
        assert priced.latency_ps <= plan.timing.latency_ps
        is_apart = all(
            way != "beside" or "beside" not in ways[at + 1 : at + 2] for at, way in enumerate(ways)
        )
        if {"beside", "fetched"} <= {*ways} and is_apart and ways[-1] != "beside":
            compared += 1
            assert priced.latency_ps == plan.timing.latency_ps
            assert priced.stages == plan.timing.stages
            assert priced.bottleneck_ps == plan.timing.bottleneck_ps
    assert compared >= 3


def test_pins_leave_no_plan_slower_than_auto() -> None:
    """They cut what would be one run: `auto` comes back to the first card for what the second has no room for."""
    draw, model, found = random.Random(2), llama(4), 0
    size = size_of(model)
    for _ in range(25):
        machine = drawn_machine(draw, 2)
        settings: dict[str, Any] = {
            "max_memory": {0: size, 1: int(0.25 * size), "cpu": 2 * size},
            "headroom": None,
            "pin": {"model.layers.3": 1},
        }
        timing = planner.plan(model, machine=machine, strategy="latency", **settings).timing
        assert timing is not None
        for execute in ("accelerator", "cpu"):
            auto = planner.plan(model, execute_offloaded=execute, **settings)  # type: ignore[call-overload, unused-ignore]
            assert timing.value_ps <= planner.price(model, auto, machine=machine).latency_ps
        devices = [stage.device for stage in timing.stages]
        found += len({*devices}) < len(devices)
    assert found >= 1


def test_a_model_without_tensors_has_a_plan_with_a_pin_too() -> None:
    plan = planner.plan(
        nn.Sequential(nn.Identity()),
        max_memory={0: 10**6, "cpu": 10**6},
        machine=drawn_machine(random.Random(1)),
        strategy="latency",
        pin={"0": 0},
        model={"hidden_size": 8},
    )
    assert plan.timing is not None
    assert plan.timing.latency_ps == 0


def test_an_execution_map_that_is_none_is_one_clear_error() -> None:
    model, machine = llama(3), drawn_machine(random.Random(1))
    with pytest.raises(planner.InvalidInputError, match="the execution map must map names"):
        planner.price(model, {"": 0}, machine=machine, execution_map=3)  # type: ignore[arg-type]
    plan = planner.plan(model, max_memory={0: 10**9}, machine=machine, strategy="latency")
    with pytest.raises(planner.InvalidInputError, match="says itself what runs elsewhere"):
        planner.price(model, plan, machine=machine, execution_map={"lm_head": "cpu"})


CONTRADICTIONS: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("stands twice", lambda timing: timing["pieces"].append(timing["pieces"][0])),
    ("not beside its stage", lambda timing: timing["pieces"][0].update(host_up_to_tokens=3)),
    (
        "a rate of 0",
        lambda timing: timing["pieces"][0].update(
            other={"way": "beside", "ps": 1, "rate": "link", "per_s": 0, "even_per_s": 5, "has_room": True}
        ),
    ),
]


@pytest.mark.parametrize(("said", "break_it"), CONTRADICTIONS, ids=[said for said, _ in CONTRADICTIONS])
def test_a_timing_that_contradicts_itself_is_no_plan(
    said: str, break_it: Callable[[dict[str, Any]], object]
) -> None:
    plan = planner.plan(
        llama(3), max_memory={0: 10**9}, machine=drawn_machine(random.Random(1)), strategy="latency"
    )
    data = json.loads(plan.to_json())
    assert planner.Plan.from_json(json.dumps(data)) == plan
    break_it(data["timing"])
    with pytest.raises(planner.InvalidInputError, match=said):
        planner.Plan.from_json(json.dumps(data))


def test_a_device_without_room_for_activations_does_not_run_a_head_whose_weights_are_elsewhere() -> None:
    draw, model = random.Random(4), llama(4, tied=True)
    for _ in range(40):
        workload = {"context_length": 16, "batch_size": 4, "allocator_margin": 0}
        plan = planner.plan(
            model,
            max_memory={0: 276, "cpu": 3 * size_of(model)},
            headroom=None,
            machine=drawn_machine(draw),
            workload=workload,
            strategy={"type": "throughput", "order": "any", "tokens": 64},
        )  # type: ignore[call-overload, unused-ignore]
        assert all(each.free_bytes is None or each.free_bytes >= 0 for each in plan.devices)
        assert planner.Plan.from_json(plan.to_json()) == plan
