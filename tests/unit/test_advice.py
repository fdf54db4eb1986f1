"""What `explain` advises can be done: a pin that is taken, to a device with room, or nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.errors import PlannerError
from planner.planning.partial import partial_plan
from planner.plans.advice import advice
from sized_models import model_of


def advised(plan: planner.Plan, name: str) -> dict[str, Any] | None:
    found = re.search(r"write pin=\{'(.*)': (.*)\}\.$", planner.explain(plan, name))
    return {found[1]: int(found[2]) if found[2].isdigit() else found[2].strip("'")} if found else None


@pytest.mark.parametrize("strategy", ["sequential", "balanced", "balanced_low_0"])
def test_strategies_that_refuse_pins_are_not_advised_any(strategy: str) -> None:
    plan = planner.plan(model_of(4, 4, 4), max_memory={0: 9, 1: 9, "cpu": 100}, strategy=strategy)
    for name in plan.device_map:
        told = planner.explain(plan, name)
        assert "pin=" not in told
        assert told.endswith("accelerate's strategies take no pins; strategy='auto' does.")
        assert len(told.splitlines()) <= 12


@pytest.mark.parametrize(
    ("budgets", "settings"),
    [
        ({0: 12}, {}),
        ({0: 12, 1: 0}, {}),
        ({0: 12, 1: 3}, {}),
        ({0: 12, 1: 9}, {"headroom": {1: 6}}),
        ({0: 12, "cpu": 100}, {"mode": "gpu_only"}),
        ({0: 12, "disk": 100}, {"mode": "no_disk"}),
        ({0: 12, 1: 100}, {"forbid": {"part1": [1]}}),
        ({0: 12, 1: 100}, {"pin": {"part1": 0}}),
    ],
)
def test_where_no_device_could_take_it_nothing_is_advised(
    budgets: dict[Any, int], settings: dict[str, Any]
) -> None:
    words = {"type": "auto", "fill": "in_order"}
    plan = planner.plan(model_of(4, 4, 4), max_memory=budgets, strategy=words, **settings)
    assert plan.device_map.get("part1", plan.device_map.get("")) == 0
    assert advised(plan, "part1") is None


def test_no_device_without_a_budget_is_advised_for_what_needs_nothing() -> None:
    plan = planner.plan(model_of(4, 0, 4), max_memory={0: 12, 1: 0}, strategy={"fill": "in_order"})
    assert advised(plan, "part1") is None


def test_a_device_whose_plan_says_no_budget_is_not_advised() -> None:
    plan = planner.plan(model_of(4, 4, 4), max_memory={0: 12, "disk": 100})
    assert advised(plan, "part1") == {"part1": "disk"}
    card, disk = plan.devices
    unsaid = replace(plan, devices=(card, replace(disk, budget_bytes=None, free_bytes=None)))
    assert advised(unsaid, "part1") is None


def test_over_drawn_plans_a_pin_that_is_advised_is_taken_where_everything_else_can_give_way() -> None:
    """Given a cpu that takes all the rest, each pin that is advised has a plan, and moves the block."""
    given = 0
    for seed in range(80):
        rng = Random(seed)
        model = model_of(*(rng.randint(1, 30) for _ in range(rng.randint(2, 6))))
        budgets: dict[Any, int] = {n: rng.choice((0, 5, 20, 40, 80)) for n in range(rng.randint(1, 3))}
        budgets["cpu"] = 1_000
        settings = {
            "mode": rng.choice(("any", "no_disk")),
            "headroom": {"all": rng.choice(("0%", "20%"))},
            "execute_offloaded": "cpu",
        }
        plan = planner.plan(model, max_memory=budgets, **settings)
        for name in [name for name, _ in model.named_children()]:
            pin = advised(plan, name)
            if pin is None:
                continue
            given += 1
            (device,) = pin.values()
            assert budgets[device] > 0
            try:
                moved = planner.plan(model, max_memory=budgets, pin=pin, **settings)
            except PlannerError as error:
                raise AssertionError(f"seed {seed}: {pin} is refused: {error}") from error
            assert moved.device_map.get(name, moved.device_map.get("")) == device
    assert given > 100


@pytest.mark.parametrize(
    ("settings", "is_free"),
    [
        ({}, True),
        ({"mode": "no_disk", "headroom": {0: 1000}}, True),
        ({"pin": {"3": 1}}, False),
        ({"pin": {"0": 0}}, False),
        ({"forbid": {"1*": [0]}}, False),
        ({"keep_together": [["0", "11"]]}, False),
        ({"strategy": "sequential"}, False),
    ],
)
@pytest.mark.parametrize("room", [{"cpu": "1GiB"}, {}])
def test_a_format_that_is_advised_is_enough(
    settings: dict[str, Any], is_free: bool, room: dict[str, str]
) -> None:
    """A smaller model does not go where a pin keeps it away from."""
    linears = (nn.Linear(256, 256, bias=False, device="meta", dtype=torch.bfloat16) for _ in range(12))
    model, budgets = nn.Sequential(*linears), {0: 1_300_000, 1: 100_000, **room}
    is_plan = True
    try:
        plan = planner.plan(model, max_memory=budgets, **settings)
        said = "".join(way for found in advice(plan, is_shell=False) for way in found.ways)
    except planner.InfeasibleError as error:
        is_plan = False
        assert error.smaller_formats["fp8"] < 1_000_000
        partial = partial_plan(error, model, max_memory=budgets, **settings)
        said = "".join(way for found in partial.advice(is_shell=False) for way in found.ways)
    option = re.search(r"dtype='(\w+)'", said)
    assert option is not None or not is_free
    if option is not None:
        smaller = planner.plan(model, max_memory=budgets, dtype=option[1], **settings)
        assert not is_plan or not sum(smaller.offloaded_bytes.values())
