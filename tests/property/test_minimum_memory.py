"""The report of minimum memory: the least budget of a device, the others as they are, with which it gets a byte.

Judged by trying: with the number said the device gets a byte, and with every smaller one it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

import planner
from generators import case
from planner.errors import InfeasibleError
from planner.model.tree import ModuleTree
from planner.plans.notices import Notice, notices
from planner.strategies.modes import ModeProblem
from planner.strategies.sequential import Layout, Outcome, Reserve, sequential

WAYS: list[tuple[bool, Reserve]] = [
    (fallback, reserve) for fallback in (False, True) for reserve in ("always", "if_offloaded")
]


def weight(size_bytes: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(size_bytes, dtype=torch.int8, device="meta"), requires_grad=False)


def part(size_bytes: int | nn.Parameter) -> nn.Module:
    module = nn.Module()
    module.w = size_bytes if isinstance(size_bytes, nn.Parameter) else weight(size_bytes)
    return module


def model_of(**children: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, child in children.items():
        model.add_module(name, child)
    return model


def is_least(gets_a_byte: Callable[[int], bool], number: int) -> bool:
    return gets_a_byte(number) and not any(map(gets_a_byte, range(number)))


def sequential_outcome(
    layout: Layout, budgets: dict[Any, Any], fallback: bool, reserve: Reserve
) -> Outcome | None:
    try:
        return sequential(layout, budgets, fallback_allocation=fallback, reserve=reserve)
    except InfeasibleError:
        return None


def used_bytes(outcome: Outcome | None, device: Any) -> int:
    return 0 if outcome is None else {usage.device: usage.used_bytes for usage in outcome.usage}[device]


def assert_exact(layout: Layout, budgets: dict[Any, Any], fallback: bool, reserve: Reserve) -> int:
    """Judges every number of a report; how many there were."""
    outcome = sequential_outcome(layout, budgets, fallback, reserve)
    if outcome is None:
        return 0
    for device, number in outcome.minimum_bytes.items():

        def gets_a_byte(size: int, device: Any = device) -> bool:
            other = sequential_outcome(layout, {**budgets, device: size}, fallback, reserve)
            return used_bytes(other, device) > 0

        assert is_least(gets_a_byte, number), (device, number, budgets, fallback, reserve)
    return len(outcome.minimum_bytes)


def test_over_drawn_trees_every_smaller_budget_is_too_small() -> None:
    judged = 0
    for seed in range(70):
        drawn = case(Random(seed))
        layout = Layout(
            ModuleTree.from_module(drawn.model), no_split=drawn.kwargs.get("no_split_module_classes", ())
        )
        for fallback, reserve in WAYS:
            judged += assert_exact(layout, drawn.max_memory, fallback, reserve)
    assert judged > 150


@pytest.mark.sweep
def test_the_same_over_many_drawn_trees() -> None:
    judged = 0
    for seed in range(1_000, 2_500):
        drawn = case(Random(seed))
        layout = Layout(
            ModuleTree.from_module(drawn.model), no_split=drawn.kwargs.get("no_split_module_classes", ())
        )
        for fallback, reserve in WAYS:
            judged += assert_exact(layout, drawn.max_memory, fallback, reserve)
    assert judged > 3_000


def tied_deep() -> nn.Module:
    """a(m0(n0 = 1#x), m1 = 2), b(w = 1#x, buffer 3)."""
    x = weight(1)
    b = part(x)
    b.register_buffer("buffer", torch.empty(3, dtype=torch.int8, device="meta"))
    return model_of(a=model_of(m0=model_of(n0=part(x)), m1=part(2)), b=b)


def tied_beside() -> nn.Module:
    """a = 1#x, b(p = 1, m0 = 1#x)."""
    x = weight(1)
    b = model_of(m0=part(x))
    b.p = weight(1)
    return model_of(a=part(x), b=b)


@pytest.mark.parametrize(
    ("model", "budgets", "fallback", "reserve", "expected"),
    [
        (model_of(A=part(1), B=part(1)), {0: 0, 1: 1, "cpu": 9}, False, "if_offloaded", {0: 1}),
        (model_of(A=part(2), B=part(1), C=part(3)), {0: 3, "cpu": 6}, True, "always", {0: 4}),
        (model_of(A=part(2), B=part(1), C=part(3)), {0: 3, "cpu": 6}, False, "always", {0: 5}),
        (tied_beside(), {0: 0, "cpu": 9}, False, "always", {0: 1}),
        (model_of(relu=nn.ReLU(), a=part(1), b=part(1)), {0: 0, "cpu": 9}, False, "always", {0: 2}),
        (model_of(relu=nn.ReLU(), a=part(1), b=part(1)), {0: 1, "cpu": 9}, False, "always", {0: 2}),
    ],
)
def test_cases_in_which_the_blocked_module_is_not_the_answer(
    model: nn.Module, budgets: dict[Any, int], fallback: bool, reserve: Reserve, expected: dict[Any, int]
) -> None:
    layout = Layout(ModuleTree.from_module(model))
    outcome = sequential(layout, budgets, fallback_allocation=fallback, reserve=reserve)
    assert outcome.minimum_bytes == expected
    assert assert_exact(layout, budgets, fallback, reserve) == 1


def test_a_tie_counts_with_all_that_it_brings_along() -> None:
    layout = Layout(ModuleTree.from_module(tied_deep()))
    assert sequential(layout, {0: 1, "cpu": 0}).minimum_bytes[0] == 9
    assert assert_exact(layout, {0: 1, "cpu": 0}, False, "always") >= 1


def test_a_device_that_holds_modules_without_tensors_only_is_said_to_hold_no_weights(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = model_of(relu=nn.ReLU(), a=part(1), b=part(1))
    with caplog.at_level("INFO", logger="planner"):
        placed = planner.infer_auto_device_map(model, {0: 1, "cpu": 9})
    assert placed["relu"] == 0
    assert "no weights could be assigned" in caplog.text
    assert "  - 0: 2 bytes required" in caplog.text


def test_a_device_that_was_not_needed_is_not_reported() -> None:
    layout = Layout(ModuleTree.from_module(model_of(a=part(4), b=part(4))))
    assert sequential(layout, {0: 100, 1: 0, "cpu": 9}).minimum_bytes == {}


# plan()


def plan_or_none(model: nn.Module, budgets: dict[Any, int], settings: dict[str, Any]) -> planner.Plan | None:
    try:
        return planner.plan(model, max_memory=budgets, **settings)
    except InfeasibleError:
        return None


@pytest.mark.parametrize("strategy", ["sequential", "balanced", "balanced_low_0"])
def test_plan_says_the_least_budget_as_its_user_says_it(strategy: str) -> None:
    """With headroom, and with budgets that the mode shares out again for each budget that is tried."""
    judged = numbers = 0
    for seed in range(12):
        rng, drawn = Random(seed), case(Random(seed))
        budgets = {device: int(size) for device, size in drawn.max_memory.items()}
        words = {"type": strategy, "fallback_allocation": rng.random() < 0.5}
        settings = {"strategy": words, "headroom": rng.choice([{"all": "10%"}, {"all": 3}, {"all": 0}])}
        found = plan_or_none(drawn.model, budgets, settings)
        for device, number in found.minimum_bytes.items() if found else ():

            def gets_a_byte(size: int, device: Any = device) -> bool:
                other = plan_or_none(drawn.model, {**budgets, device: size}, settings)  # noqa: B023
                return other is not None and any(e.id == device and e.used_bytes for e in other.devices)

            judged += 1
            if number is None:
                assert not any(map(gets_a_byte, (1, 8, 40, 90, 250, 1_000, 10**6)))
            else:
                numbers += 1
                sizes = range(number) if number < 60 else rng.sample(range(number), 60)
                assert gets_a_byte(number)
                assert not any(map(gets_a_byte, sizes))
    assert judged >= 5
    assert numbers >= 2 or strategy == "balanced_low_0"


@pytest.mark.parametrize("headroom", [{"all": 0}, {"all": "10%"}, {"all": "12.5%"}, {"all": 10**6}], ids=str)
@pytest.mark.parametrize("strategy", ["sequential", "balanced", "balanced_low_0"])
def test_many_cards_are_not_read_again_for_each_size_in_between(
    strategy: str, headroom: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every budget that is tried takes time by the number of cards; the numbers themselves are as large as they like."""
    model = model_of(**{f"part{number}": part(10**6 + number) for number in range(70)})
    budgets: dict[Any, int] = {**{number: 1_000 + number for number in range(60)}, "cpu": 10**12}
    found = planner.plan(model, max_memory=budgets, strategy=strategy, headroom=headroom)
    tried = 0
    budgets_of = ModeProblem._budgets

    def counted(problem: ModeProblem, rooms: Any) -> Any:
        nonlocal tried
        tried += 1
        return budgets_of(problem, rooms)

    monkeypatch.setattr(ModeProblem, "_budgets", counted)
    assert len(found.minimum_bytes) == 60
    assert tried < 60 * 15


def test_the_number_is_in_the_plan_its_json_and_its_notices() -> None:
    model = model_of(A=part(2), B=part(1), C=part(3))
    for strategy in ("sequential", "balanced"):
        found = planner.plan(model, max_memory={0: 4, "cpu": 6}, strategy=strategy)
        assert dict(found.minimum_bytes) == {0: 5}
        assert '"minimum_bytes":{"0":5}' in found.to_json()
        again = planner.Plan.from_json(found.to_json())
        assert again == found
        assert dict(again.minimum_bytes) == {0: 5}
        told = "GPU 0 holds no weights; with a budget of 5 B, the others as they are, it would get some."
        assert Notice("hint", told) in notices(found)


def test_auto_tells_of_an_accelerator_that_holds_nothing_and_why() -> None:
    model = model_of(A=part(20), B=part(10), C=part(30))
    tight = planner.plan(model, max_memory={0: 45, 1: 5, "cpu": 60})
    assert dict(tight.minimum_bytes) == {1: None}
    assert '"minimum_bytes":{"1":null}' in tight.to_json()
    assert planner.Plan.from_json(tight.to_json()) == tight
    (told,) = [str(each) for each in notices(tight) if str(each).startswith("GPU 1 holds no weights")]
    assert told == "GPU 1 holds no weights: it has room for 5 B, and the smallest block offloaded needs 20 B."
    roomy = planner.plan(model, max_memory={0: 61, 1: 60}, strategy={"fill": "in_order"})
    assert notices(roomy) == (), "everything fits without it, so nobody has to do anything"
    assert "minimum_bytes" not in planner.plan(model, max_memory={0: 60}).to_json()


def test_a_plan_written_before_there_were_such_numbers_can_be_read() -> None:
    found = planner.plan(model_of(A=part(2)), max_memory={0: 4})
    assert dict(planner.Plan.from_json(found.to_json()).minimum_bytes) == {}
    assert planner.Plan.from_json(found.to_json()) == found


@pytest.mark.parametrize("row", ['{"0":-1}', '{"0":1.5}', '{"0":"5"}', '{"0":true}', "[5]", '{"nowhere":5}'])
def test_a_number_in_json_that_makes_no_sense_is_an_error(row: str) -> None:
    text = planner.plan(
        model_of(A=part(2), B=part(3)), max_memory={0: 1, "cpu": 9}, strategy="sequential"
    ).to_json()
    assert '"minimum_bytes":{"0":5}' in text
    with pytest.raises(planner.errors.InvalidInputError):
        planner.Plan.from_json(text.replace('{"0":5}', row))
