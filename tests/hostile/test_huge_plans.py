"""Budgets, models and numbers of devices beyond all reason: a right plan, or an error of ours with the numbers, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.errors import (
    InfeasibleError,
    InvalidDevicesError,
    InvalidInputError,
    InvalidTreeError,
    PlannerError,
)
from planner.plans.notices import notices

STRATEGIES = ("auto", "sequential", "balanced", "balanced_low_0")
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def huge(rows: int = 2**31, columns: int = 2**21, count: int = 2) -> nn.Module:
    model = nn.Module()
    for index in range(count):
        part = nn.Module()
        part.w = nn.Parameter(torch.empty(rows, columns, device="meta"))
        model.add_module(f"part{index}", part)
    return model


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3))


def everything_of(plan: planner.Plan) -> None:
    """Whatever can be asked of a plan."""
    assert planner.Plan.from_json(plan.to_json()) == plan
    name = next(iter(plan.device_map))
    asked = (plan.summary(), plan._repr_html_(), repr(plan), notices(plan), planner.explain(plan, name))
    assert all(asked[:3])


@every_strategy
@pytest.mark.parametrize(
    "budgets",
    [
        {0: 2**61, "cpu": 2**61},
        {0: 2**62},
        {0: 10**30, 1: 10**300, "cpu": 10**30, "disk": 10**30},
        {0: 8, 1: 2**62, "cpu": 10**40},
        dict.fromkeys(range(64), 2**62),
    ],
    ids=["2^61", "2^62", "10^30", "some", "64 of 2^62"],
)
def test_budgets_without_measure_are_more_than_enough(strategy: str, budgets: dict[Any, int]) -> None:
    plan = planner.plan(small(), max_memory=budgets, strategy=strategy)
    assert sum(device.used_bytes for device in plan.devices) == 48
    assert sum(plan.offloaded_bytes.values()) == 0
    everything_of(plan)
    (many,) = planner.plan_many(small(), [budgets], strategy=strategy)
    assert isinstance(many, planner.Plan)
    assert many.device_map == plan.device_map


@every_strategy
def test_what_no_float_holds_is_no_budget_and_no_device(strategy: str) -> None:
    for budgets in ({0: 10**400}, {10**30: 100}):
        with pytest.raises(InvalidInputError, match="max_memory"):
            planner.plan(small(), max_memory=budgets, strategy=strategy)


def test_auto_names_the_number_of_devices_that_it_takes() -> None:
    budgets = dict.fromkeys(range(65), 10**9)
    calls: tuple[Callable[[], object], ...] = (
        lambda: planner.plan(small(), max_memory=budgets),
        lambda: planner.plan_many(small(), [budgets]),
        lambda: planner.plan(small(), max_memory={**dict.fromkeys(range(64), 10), "cpu": 10}, pin={"0": 0}),
        lambda: planner.plan(small(), max_memory=dict.fromkeys(range(1_000), 10), forbid={"0": [999]}),
    )
    for call in calls:
        with pytest.raises(InvalidDevicesError, match=r"devices have budgets.* at most 64") as caught:
            call()
        assert caught.value.device in (64, "cpu")
    assert planner.plan(small(), max_memory=dict.fromkeys(range(64), 10**9)).device_map


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_the_other_strategies_take_any_number_of_devices(strategy: str) -> None:
    plan = planner.plan(small(), max_memory=dict.fromkeys(range(1_000), 100), strategy=strategy)
    assert sum(device.used_bytes for device in plan.devices) == 48
    everything_of(plan)


@pytest.mark.parametrize(
    "budgets", [{0: 100, "cpu": 10**9}, {0: 2**57, "cpu": 10**9}, {0: 2**50, "cpu": 2**60}]
)
def test_a_model_too_large_to_be_added_up_is_an_error_with_both_numbers(budgets: dict[Any, int]) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: planner.plan(huge(), max_memory=budgets),
        lambda: planner.plan_many(huge(), [budgets]),
        lambda: planner.plan(huge(), max_memory=budgets, keep_together=[["part0", "part1"]]),
        lambda: planner.plan(huge(), max_memory=budgets, granularity="module"),
    )
    for call in calls:
        with pytest.raises(InvalidTreeError, match=rf"{2**55} bytes .*less than {2**53} "):
            call()
    just = huge(2**31, 2**20 - 1, 1)
    assert planner.plan(just, max_memory={0: 2**60}).device_map == {"part0": 0}


@every_strategy
def test_a_model_beyond_what_any_strategy_adds_up(strategy: str) -> None:
    with pytest.raises(InvalidTreeError, match=f"larger than {2**57} bytes"):
        planner.plan(huge(2**31, 2**29, 1), max_memory={0: 100, "cpu": 10**9}, strategy=strategy)


@every_strategy
def test_lazy_parameters_are_named(strategy: str) -> None:
    for call in (planner.plan, lambda model, **said: planner.plan_many(model, [{0: 1}], **said)):
        settings = {"strategy": strategy} | ({"max_memory": {0: 100}} if call is planner.plan else {})
        with pytest.raises(InvalidTreeError, match=r"0\.weight") as caught:
            call(lazy(), **settings)
        assert caught.value.name == "0.weight"


@every_strategy
def test_headroom_beyond_all_budgets_leaves_no_room(strategy: str) -> None:
    with pytest.raises(PlannerError):
        planner.plan(small(), max_memory={0: 100, "disk": 1}, headroom={0: 10**30}, strategy=strategy)


@pytest.mark.parametrize(
    "call",
    [
        lambda: planner.plan(None, max_memory={0: 1}),
        lambda: planner.plan(5, max_memory={0: 1}),
        lambda: planner.plan([], max_memory={0: 1}),
        lambda: planner.Plan.from_json(5),
        lambda: planner.Plan.from_json(None),
        lambda: planner.explain(None, "0"),
        lambda: planner.explain(planner.plan(small(), max_memory={0: 99}), 5),
        lambda: planner.explain(planner.plan(small(), max_memory={0: 99}), None),
        lambda: planner.plan(small(), max_memory={0: 99}).diff(None),
        lambda: planner.infer_auto_device_map(lazy(), {0: 100}),
        lambda: planner.get_balanced_memory(lazy(), {0: 2**62, 1: 2**62}),
        lambda: planner.compute_module_sizes(huge(2**31, 2**29, 1)),
    ],
)
def test_what_is_no_model_plan_or_name_is_an_error_of_ours(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidInputError):
        call()


def test_accelerates_functions_take_budgets_without_measure() -> None:
    for budgets in ({0: 2**62}, {0: 1e30, 1: 10**300}, dict.fromkeys(range(1_000), 1) | {"cpu": 10**300}):
        assert planner.infer_auto_device_map(small(), budgets)
        assert planner.get_balanced_memory(small(), budgets).keys() == budgets.keys()
    assert planner.infer_auto_device_map(huge(), {0: 100, "cpu": 10**9}) == {"": "disk"}


def test_streaming_room_without_measure_is_no_plan_and_no_overflow() -> None:
    model = huge(2**31, 2**18, 2)
    with pytest.raises(InfeasibleError):
        planner.plan(model, max_memory={0: 2**51, "cpu": 2**40}, mode="gpu_only", staging_blocks=1_000)
