"""The largest that is found is the largest of all real plans, one for each value."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

import planner
from planner import InfeasibleError
from planner.memory.recording import workloads
from planner.plans.plan import Plan
from tiny_models import built

FEW, MANY = 20, 40
FREE: Any = {"allocator_margin": 0}
# What is asked for, and the workload beside it. Gemma's windows are 16 tokens long.
ASKED: dict[str, tuple[Any, Any]] = {
    "context": ("context_length", FREE),
    "rows": ("context_length", FREE | {"batch_size": 3, "attention_kernel": "math"}),
    "prompt": ("context_length", FREE | {"prompt_length": 9, "batch_size": 2}),
    "static": ("context_length", FREE | {"cache": "static"}),
    "batch": ("batch_size", FREE | {"context_length": 24}),
    "margin": ("batch_size", {"context_length": 12, "allocator_margin": "25%"}),
}
NAMES = ("llama", "gemma", "mixtral")


@pytest.fixture(autouse=True)
def all_recordings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each value is recorded once for all budgets."""
    monkeypatch.setattr(workloads, "_MOST", 100_000)


def planned(model: Any, of: str, value: int, workload: Any, settings: Mapping[str, Any]) -> Plan | None:
    try:
        return planner.plan(model, workload={**workload, of: value}, **settings)
    except InfeasibleError:
        return None


def room_of(model: Any, of: str, value: int, workload: Any) -> int:
    """What one device needs for a value."""
    plan = planned(model, of, value, workload, {"max_memory": {0: 1 << 40}, "headroom": None})
    assert plan is not None
    return plan.devices[0].peak_bytes + plan.devices[0].margin_bytes


def budgets_of(source: random.Random, room: int) -> dict[Any, int]:
    """Devices that have, together, about as much as is needed for some value."""
    count = source.choice((1, 2, 3))
    shares = [source.uniform(0.7, 1.3) for _ in range(count)]
    whole = room * source.uniform(0.6, 1.3)
    budgets: dict[Any, int] = {at: int(whole * share / sum(shares)) for at, share in enumerate(shares)}
    if source.random() < 0.5:
        budgets["cpu"] = 1 << 30
    return budgets


def is_judged(model: Any, of: Any, workload: Any, settings: Mapping[str, Any], upto: int) -> bool:
    """Whether there is an answer; asserts that it is that of a walk through all values."""
    least = workload.get("prompt_length", 1) if of == "context_length" else 1
    values = range(least, upto + 1)
    plans = {value: planned(model, of, value, workload, settings) for value in values}
    try:
        found = planner.largest(model, of, upto=upto, workload=workload, **settings)
    except InfeasibleError:
        assert plans[least] is None
        return False
    with_plan = [value for value in values if plans[value] is not None]
    assert found.plan == plans[found.value]
    assert (found.limit == "asked") == (found.value == upto)
    assert found.value == upto or plans[found.value + 1] is None
    if len(with_plan) == with_plan[-1] - least + 1:  # more never fits where less does not
        assert found.value == with_plan[-1]
    return True


def walked(seed: int, name: str, asked: str, count: int, upto: int, **settings: Any) -> int:
    source, model, (of, workload) = random.Random(f"{seed} {name} {asked}"), built(name), ASKED[asked]
    answers = 0
    for _ in range(count):
        room = room_of(model, of, source.randint(10, upto), workload)
        asked_for = {"max_memory": budgets_of(source, room), "headroom": None, **settings}
        answers += is_judged(model, of, workload, asked_for, upto)
    return answers


@pytest.mark.parametrize(("name", "asked"), [("gemma", "context"), ("llama", "prompt"), ("llama", "batch")])
def test_the_largest_is_that_of_a_walk(name: str, asked: str) -> None:
    assert walked(0, name, asked, 4, FEW)


@pytest.mark.parametrize("granularity", ["module"])
def test_with_blocks_in_parts(granularity: str) -> None:
    assert walked(1, "mixtral", "batch", 2, FEW, granularity=granularity)


def test_by_formulas() -> None:
    model: Any = built("gemma")
    planner.dispatch(model, {"": "cpu"})
    plan = planner.plan(model, max_memory={0: "1GiB"}, workload={"context_length": 8})
    assert plan.demands is not None and plan.demands.method == "formula"
    source, answers = random.Random(2), 0
    for of, workload in (ASKED["context"], ASKED["batch"], ASKED["prompt"]):
        for _ in range(2):
            room = room_of(model, of, source.randint(10, FEW), workload)
            settings = {"max_memory": budgets_of(source, room), "headroom": None}
            answers += is_judged(model, of, workload, settings, FEW)
    assert answers


@pytest.mark.sweep
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("name", [*NAMES, "gpt2"])
def test_many_budgets(name: str, asked: str) -> None:
    assert walked(3, name, asked, 60, MANY) > 20


@pytest.mark.sweep
@pytest.mark.parametrize("granularity", ["module", "expert"])
@pytest.mark.parametrize("name", NAMES)
def test_many_budgets_with_blocks_in_parts(name: str, granularity: str) -> None:
    assert walked(4, name, "batch", 20, MANY, granularity=granularity) > 5
    assert walked(5, name, "context", 20, MANY, granularity=granularity) > 5
