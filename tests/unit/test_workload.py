"""A workload in plans: what it may say, what it adds to devices, and what of it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import InfeasibleError, InvalidConfigError, InvalidConstraintError, InvalidInputError, Plan
from planner.planning.margins import margin_bytes
from planner.plans.parts import DevicePlan
from planner.settings.schema import Settings
from tiny_models import TINY, built

WORK = {"context_length": 64, "batch_size": 2, "allocator_margin": 0}


def adds_up(device: DevicePlan) -> bool:
    parts = (
        device.headroom_bytes,
        device.margin_bytes,
        device.used_bytes,
        device.cache_bytes,
        device.activation_bytes,
        device.reserved_bytes,
        device.free_bytes or 0,
    )
    return sum(parts) == device.budget_bytes


def planned(name: str, room: int = 1 << 22, **workload: Any) -> Plan:
    return planner.plan(
        built(name), max_memory={0: room, 1: room, "cpu": 1 << 24}, workload={**WORK, **workload}
    )


@pytest.mark.parametrize("name", TINY)
def test_the_budget_is_its_parts(name: str) -> None:
    for room in (150_000, 1 << 20, 1 << 22):
        plan = planned(name, room, allocator_margin="10%")
        assert all(adds_up(device) for device in plan.devices)
        assert Plan.from_json(plan.to_json()) == plan
        assert Plan.from_json(plan.to_json()).predicted_peaks == plan.predicted_peaks


def test_what_was_asked_of_a_workload_is_checked_at_once() -> None:
    for wrong in (
        {"batch_size": 2},
        {"context_length": 0},
        {"context_length": 2.5},
        {"context_length": 8, "prompt_length": 9},
        {"context_length": 8, "batch_size": -1},
        {"context_length": 8, "cache": "paged"},
        {"context_length": 8, "inputs": {"pixels": ("rows", 3)}},
        {"context_length": 8, "allocator_margin": "101%"},
    ):
        with pytest.raises(InvalidConfigError):
            planner.plan(built("llama"), max_memory={0: 1 << 20}, workload=wrong)


def test_k_is_1024() -> None:
    plan = planned("llama", context_length="2k")
    assert plan.settings["workload.context_length"].value == 2048
    assert plan == planned("llama", context_length=2048)


def test_the_cache_is_counted_to_the_byte() -> None:
    """Four layers, keys and values, two sequences of 64 tokens, two heads of 8 floats."""
    plan = planned("llama")
    assert sum(device.cache_bytes for device in plan.devices) == 4 * 2 * 2 * 64 * 2 * 8 * 4


def test_more_tokens_leave_less_room_for_weights() -> None:
    rooms = [
        sum(device.used_bytes for device in planned("llama", 250_000, context_length=length).devices[:2])
        for length in (16, 512)
    ]
    assert rooms[0] > rooms[1]


def test_a_plan_without_a_workload_says_nothing_of_it() -> None:
    plan = planner.plan(built("llama"), max_memory={0: 1 << 20})
    assert plan.demands is None
    assert not plan.predicted_peaks
    assert plan.devices[0].peak_bytes == plan.devices[0].running_bytes == 0
    assert "activations" not in plan.summary()


def test_summary_and_explain_say_what_running_takes() -> None:
    plan = planned("llama")
    assert "cache" in plan.summary()
    assert "activations" in plan.summary()
    words = planner.explain(plan, "model.layers.1")
    assert "keeps a cache of" in words
    assert "needs most at once" in words


def test_what_does_not_fit_because_of_the_workload_says_so() -> None:
    with pytest.raises(InfeasibleError, match="the workload needs"):
        planner.plan(
            built("llama"),
            max_memory={0: 200_000},
            workload={"context_length": 100_000, "allocator_margin": 0},
        )


def test_what_knows_no_workload_refuses_it() -> None:
    with pytest.raises(InvalidConstraintError, match="auto"):
        planner.plan(built("llama"), max_memory={0: 1 << 20}, workload=WORK, strategy="balanced")
    with pytest.raises(InvalidInputError, match="configuration"):
        planner.plan(nn.Linear(2, 2), max_memory={0: 1 << 20}, workload=WORK)


def test_offloading_that_a_workload_forces_is_no_proof() -> None:
    """Accelerators that are kept free for what would run there are accelerators all the same."""
    model = built("llama")
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    plan = planner.plan(model, max_memory={0: total, "cpu": 1 << 24}, workload=WORK)
    assert sum(plan.offloaded_bytes.values()) > 0
    assert not plan.certificate.proven


def test_margins_are_for_accelerators_that_run_something() -> None:
    assert margin_bytes("cpu", 1000, "50%") == 0
    assert margin_bytes(0, 1000, "50%") == 500
    assert margin_bytes(0, 0, 5) == 0
    if not torch.cuda.is_available() and not torch.accelerator.is_available():
        assert margin_bytes(0, 1000, None) == 250 + (96 << 20)


def test_plans_of_many_budgets_have_the_workload_too() -> None:
    rows = [{0: 1 << 20, "cpu": 1 << 24}, {0: 1 << 22, "cpu": 1 << 24}]
    plans = planner.plan_many(built("llama"), rows, workload=WORK)
    for row, plan in zip(rows, plans, strict=True):
        assert plan == planner.plan(built("llama"), max_memory=row, workload=WORK)


def test_the_workload_is_off_by_default() -> None:
    assert Settings().workload is None
