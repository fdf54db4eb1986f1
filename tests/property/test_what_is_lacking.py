"""What one device alone would need more, as plans and errors say it: enough, and with anything less it is not."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.devices.budgets import device_budgets
from planner.errors import InfeasibleError, InvalidConstraintError

Device = int | str
Budgets = dict[Device, int]


class Part(nn.Module):
    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(size_bytes, dtype=torch.uint8, device="meta"), requires_grad=False)


class Layer(nn.Module):
    def __init__(self, *sizes_bytes: int) -> None:
        super().__init__()
        for number, size in enumerate(sizes_bytes):
            self.add_module(f"part{number}", Part(size))


class Net(nn.Module):
    _no_split_modules = ("Layer", "Part")

    def __init__(self, *blocks: int | tuple[int, ...]) -> None:
        super().__init__()
        for number, sizes in enumerate(blocks):
            self.add_module(f"b{number}", Part(sizes) if isinstance(sizes, int) else Layer(*sizes))


def offloaded(net: nn.Module, budgets: Budgets, settings: dict[str, Any]) -> int | None:
    """None where there is no plan."""
    try:
        plan = planner.plan(net, max_memory=budgets, **settings)
    except InfeasibleError:
        return None
    return sum(plan.offloaded_bytes.values())


def lacking(net: nn.Module, budgets: Budgets, settings: dict[str, Any]) -> tuple[bool, dict[Device, int]]:
    """Whether there is a plan, and what is said to be lacking for one, or for one that offloads nothing."""
    try:
        plan = planner.plan(net, max_memory=budgets, **settings)
    except InfeasibleError as error:
        return False, dict(error.more_bytes)
    return True, dict(plan.shortfall.more_bytes) if plan.shortfall else {}


def assert_least(net: nn.Module, budgets: Budgets, settings: dict[str, Any], why: Any = None) -> int:
    has_plan, more = lacking(net, budgets, settings)
    for device, amount in more.items():

        def is_enough(extra: int, device: Device = device) -> bool:
            found = offloaded(net, {**budgets, device: budgets[device] + extra}, settings)
            return found == 0 if has_plan else found is not None

        assert is_enough(amount), (why, device, amount)
        assert not any(map(is_enough, range(amount))), (why, device, amount)
    return len(more)


def test_more_room_may_ask_for_more() -> None:
    """With 14 bytes the first block is larger than the card and runs on the cpu; with 20 it is streamed and needs room."""
    settings = {"pin": {"b1": 0}}
    net = Net(20, (1, 2, 2), 9)
    assert lacking(net, {0: 12, "cpu": 40}, settings) == (False, {0: 2})
    assert assert_least(net, {0: 12, "cpu": 40}, settings) == 1


def test_in_parts_less_is_lacking_than_whole() -> None:
    """Also where the plan itself leaves the block whole."""
    settings = {"granularity": "module", "staging_blocks": 3}
    budgets: Budgets = {0: 0, 1: 17, "cpu": 30}
    assert lacking(Net((8, 17)), budgets, settings) == (True, {0: 8, 1: 8})
    assert assert_least(Net((8, 17)), budgets, settings) == 2


@pytest.mark.parametrize("granularity", ["block", "module"])
def test_over_drawn_problems_every_smaller_amount_is_too_small(granularity: str) -> None:
    judged = 0
    for seed in range(150):
        rng = Random(seed)
        blocks = [
            rng.randint(1, 9) if rng.random() < 0.5 else tuple(rng.choices(range(1, 7), k=rng.randint(1, 3)))
            for _ in range(rng.randint(1, 4))
        ]
        total = sum(block if isinstance(block, int) else sum(block) for block in blocks)
        budgets: Budgets = {card: rng.choice([0, rng.randint(0, total)]) for card in range(rng.randint(1, 2))}
        budgets["cpu"] = rng.choice([total // 2, total, 3 * total])
        settings: dict[str, Any] = {
            "granularity": granularity,
            "staging_blocks": rng.choice([1, 1, 2]),
            "pin": {f"b{rng.randrange(len(blocks))}": 0} if rng.random() < 0.3 else {},
        }
        try:
            judged += assert_least(Net(*blocks), budgets, settings, seed)
        except InvalidConstraintError:
            continue
    assert judged > 50, judged


def test_everything_rests_where_the_widest_cards_are_full() -> None:
    """Blocks pinned there leave no room; the next card that has some streams the rest, in any search."""
    for wide in (3, 4, 5, 8):
        net = Net(*(100 + number for number in range(wide)), *[10] * 20)
        budgets: Budgets = {**{number: 100 + number for number in range(wide)}, wide: 12, "cpu": 10_000}
        for steps in (0, 1, 100):
            pins = {f"b{number}": number for number in range(wide)}
            plan = planner.plan(net, max_memory=budgets, pin=pins, strategy={"search_steps": steps})
            assert plan.offloaded_bytes["cpu"] == 200


def test_full_cards_that_share_a_memory_are_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    def pooled(*words: Any) -> Any:
        rooms = device_budgets(*words)
        return tuple(replace(room, pool="shared" if room.kind == "accelerator" else None) for room in rooms)

    monkeypatch.setattr("planner.planning.problem.device_budgets", pooled)
    with pytest.raises(InfeasibleError):
        planner.plan(Net(4), max_memory={0: 0, 1: 0, "cpu": 100}, mode="gpu_only")
