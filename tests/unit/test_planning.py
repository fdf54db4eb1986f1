"""The door to the strategies: outcomes and what they tell."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from planner import infer_auto_device_map, plan
from planner.errors import InfeasibleError, InvalidInputError
from planner.model.tree import ModuleTree
from planner.plans.wording import sentence
from planner.strategies.sequential import Layout, sequential, sequential_many


def leaf(size_bytes: int) -> nn.Module:
    module = nn.Module()
    module.w = nn.Parameter(torch.empty(size_bytes, dtype=torch.uint8, device="meta"), requires_grad=False)
    return module


def model_of(**sizes: int) -> nn.Module:
    model = nn.Module()
    for name, size in sizes.items():
        model.add_module(name, leaf(size))
    return model


@pytest.fixture
def layout() -> Layout:
    return Layout(ModuleTree.from_module(model_of(a=2, b=1, c=3)))


def test_usage_adds_up_to_the_model(layout: Layout) -> None:
    outcome = sequential(layout, {0: 4, "cpu": 6}, fallback_allocation=True)
    assert [(u.device, u.budget_bytes, u.used_bytes, u.free_bytes) for u in outcome.usage] == [
        (0, 4, 1, 0),
        ("cpu", 6, 5, 1),
        ("disk", None, 0, None),
    ]


def test_every_decision_has_its_two_numbers(layout: Layout) -> None:
    outcome = sequential(layout, {0: 4, "cpu": 6})
    first = outcome.reasons[0]
    assert (first.rule, first.name, first.device, first.needed_bytes, first.available_bytes) == (
        "next_device",
        "a",
        0,
        2,
        1,
    )
    assert sentence(first) == "Leaving 0: a cannot be split and needs 2 bytes, 1 are available."
    assert outcome.minimum_bytes == {0: 5}


def test_many_budgets_give_what_each_gives_alone(layout: Layout) -> None:
    rows = [{0: first, 1: second, "cpu": 6} for first in range(8) for second in range(8)]
    maps = [outcome.device_map() for outcome in sequential_many(layout, rows)]
    assert maps == [sequential(layout, row).device_map() for row in rows]
    assert sequential_many(layout, []) == []


def test_an_exhausted_disk_tells_what_is_missing_and_what_was_placed(layout: Layout) -> None:
    with pytest.raises(InfeasibleError, match="lacks 2 bytes") as caught:
        sequential(layout, {0: 1, "disk": 4})
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.block, error.device, error.shortfall_bytes) == ("c", "disk", 2)
    assert error.best_partial == {"a": "disk", "b": "disk"}


def test_a_reservation_must_be_one_of_two_words(layout: Layout) -> None:
    with pytest.raises(InvalidInputError, match="'sometimes'"):
        sequential(layout, {0: 4}, reserve="sometimes")  # type: ignore[arg-type]


def test_verbose_prints_the_recorded_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    infer_auto_device_map(model_of(a=2, b=1, c=3), {0: 4, "cpu": 6}, verbose=True)
    assert "Leaving 0: a cannot be split" in capsys.readouterr().out


def test_two_passes_report_only_the_pass_that_is_returned(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(a=2, b=1, c=3)
    with caplog.at_level(logging.INFO, logger="planner"):
        infer_auto_device_map(model, {0: 4, 1: 10, "cpu": 6}, reserve="if_offloaded")
    assert "insufficient memory" not in caplog.text
    with caplog.at_level(logging.INFO, logger="planner"):
        infer_auto_device_map(model, {0: 4, "cpu": 6}, reserve="if_offloaded")
    assert caplog.text.count("insufficient memory") == 1
    assert "  - 0: 5 bytes required" in caplog.text


@pytest.mark.parametrize("budgets", [{0: 4, "disk": 100}, {0: 4, "cpu": 0, "disk": 100}])
@pytest.mark.parametrize("strategy", ["sequential", "balanced", "balanced_low_0"])
def test_a_mode_without_disk_keeps_every_strategy_from_it(strategy: Any, budgets: dict[Any, int]) -> None:
    model = model_of(a=2, b=1, c=3)
    assert plan(model, max_memory=budgets, strategy=strategy).offloaded_bytes["disk"] > 0
    with pytest.raises(InfeasibleError, match="no_disk leaves out disk"):
        plan(model, max_memory=budgets, strategy=strategy, mode="no_disk")


@pytest.mark.parametrize("strategy", ["auto", "sequential", "balanced", "balanced_low_0"])
def test_a_disk_that_was_not_named_is_not_used(strategy: Any) -> None:
    """The drop-in functions use it, as accelerate does."""
    model = model_of(a=2, b=1, c=3)
    for budgets in ({0: 4}, {0: 4, "cpu": 1}):
        with pytest.raises(InfeasibleError):
            plan(model, max_memory=budgets, strategy=strategy)
    assert "disk" in infer_auto_device_map(model, {0: 4}).values()
    with pytest.raises(InfeasibleError, match="disk is not among the devices"):
        plan(model, max_memory={0: 4}, strategy="sequential")
    unused = plan(model, max_memory={0: 100}, strategy=strategy)
    assert [device.id for device in unused.devices] == [0]


def test_a_sequential_plan_is_proven_only_where_nothing_is_offloaded() -> None:
    model = model_of(a=2, b=1, c=3)
    fitting = plan(model, max_memory={0: 100, "cpu": 100}, strategy="sequential").certificate
    assert (fitting.proven, fitting.gap_bytes) == (True, 0)
    offloading = plan(model, max_memory={0: 4, "cpu": 100}, strategy="sequential").certificate
    assert (offloading.proven, offloading.gap_bytes) == (False, 6)
