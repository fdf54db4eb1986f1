"""Notices are about what somebody has to know or to do: bad news first, then hints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import planner
from planner import Plan
from planner.plans.notices import Notice, notices
from planner.plans.parts import BEFORE_QUANTIZATION, Account
from sized_models import model_of


def told(plan: Plan, **which: bool) -> list[tuple[str, str]]:
    return [(notice.kind, notice.text) for notice in notices(plan, **which)]


@pytest.mark.parametrize(
    "budgets",
    [
        {0: 100},
        {0: 100, 1: 100, "cpu": 100},
        {0: 25, 1: 25, "cpu": 100},
        {"cpu": 100},
    ],
)
def test_nothing_is_said_where_nobody_has_to_do_anything(budgets: dict[Any, int]) -> None:
    assert (
        notices(planner.plan(model_of(10, 10, 10), max_memory=budgets, strategy={"fill": "in_order"})) == ()
    )


def test_bad_news_is_first_and_names_devices_as_people_do() -> None:
    plan = planner.plan(model_of(10, 10, 20, 30), max_memory={0: 40, "cpu": 40, "disk": 100})
    assert told(plan) == [
        ("bad", "60 B of 70 B are offloaded, 40 B to RAM and 20 B to disk; no plan offloads less."),
        ("bad", "Nothing is left for activations and the KV cache on GPU 0."),
        ("hint", "With 30 B more on GPU 0, everything would be on the accelerators."),
    ]
    assert told(plan, beyond_verdict=True) == []


def test_equal_cards_are_one_way() -> None:
    plan = planner.plan(model_of(10, 10, 10, 10), max_memory={0: 15, 1: 15, 2: 15, "cpu": 100})
    assert ("hint", "With 5 B more on one of GPUs 0-2, everything would be on the accelerators.") in told(
        plan
    )


def test_what_is_to_know_of_a_model_is_a_hint_unless_it_puts_bytes_in_doubt() -> None:
    plan = planner.plan(model_of(10), max_memory={0: 100})
    noted = with_source(plan, lambda source: replace(source, notes=("x.y is odd", BEFORE_QUANTIZATION)))
    assert notices(noted) == (Notice("bad", BEFORE_QUANTIZATION), Notice("hint", "x.y is odd"))


def with_source(plan: Plan, change: Callable[[Any], Any]) -> Plan:
    account = plan.account
    parts = ("names", "block_bytes", "reasons", "shortfall", "minimum_bytes", "settings", "provenance")
    made = {part: (lambda part=part: getattr(account, part)) for part in parts}
    return replace(plan, account=Account(source=lambda: change(account.source), **made))
