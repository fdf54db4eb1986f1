"""A plan's device map in the hands of a loader that knows nothing else of the plan: what is offloaded streams where there is room."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from itertools import pairwise, product

import accelerate
import pytest
import torch
from torch import nn

import planner
from planner import Plan
from planner.plans.map_alone import map_is_enough
from planner.plans.notices import notices
from rig import Accelerators

LAYER_BYTES = 128 * 128 * 4
ACTIVATIONS_BYTES = 8 << 10
X = torch.ones(1, 128)

ALIKE = [128] * 7
UNLIKE = [128, 128, 192, 64, 128, 192, 64, 160]


def layers(widths: list[int]) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(*pair, bias=False) for pair in pairwise(widths))).requires_grad_(False)


def planned(widths: list[int], room_0: float, room_1: float, **settings: str) -> Plan:
    """A plan on two cards with room for so many layers each, and some for activations."""
    rooms = {0: room_0, 1: room_1}
    budgets = {card: int(room * LAYER_BYTES) + ACTIVATIONS_BYTES for card, room in rooms.items()}
    return planner.plan(
        layers(widths),
        max_memory={**budgets, "cpu": "1GiB"},
        headroom=dict.fromkeys(rooms, ACTIVATIONS_BYTES),
        **settings,  # type: ignore[arg-type]
    )


def shares(
    plan: Plan,
    widths: list[int],
    accelerators: Accelerators,
    load_map: Callable[[nn.Module, dict[str, int | str]], nn.Module] | None,
) -> list[float]:
    """Peaks of a forward as shares of the budgets, by a loader of device maps or, without one, by the whole plan."""
    gc.collect()  # the model before this one
    model = layers(widths)
    if load_map is None:
        planner.dispatch(model, plan)
    else:
        load_map(model, plan.device_map)
    accelerators.reset()
    model(X)
    budgets = {device.id: device.budget_bytes for device in plan.devices}
    return [accelerators.peak_bytes(card) / budgets[card] for card in (0, 1)]


def by_the_map_alone(model: nn.Module, device_map: Mapping[str, int | str]) -> nn.Module:
    """As a loader that knows nothing of execution maps."""
    return planner.dispatch_model(model, dict(device_map))


@pytest.mark.parametrize(
    "load_map", [planner.dispatch_model, accelerate.dispatch_model], ids=["planner", "accelerate"]
)
@pytest.mark.parametrize(
    ("step", "least"),
    [pytest.param(1.0, 6, id="coarse"), pytest.param(0.5, 33, id="fine", marks=pytest.mark.sweep)],
)
def test_a_map_that_is_enough_keeps_the_budgets_by_itself(
    virtual_accelerators: Accelerators, load_map: Callable[..., nn.Module], step: float, least: int
) -> None:
    """Of the 60 pairs of cards of the fine grid, 24 had a map that is enough before such plans were preferred, and 33 have one."""
    rooms = [step * count for count in range(1, int(4 / step) + 1)]
    enough = 0
    for pair in product(rooms, rooms):
        plan = planned(UNLIKE, *pair)
        if not plan.execution_map:
            continue
        is_enough = map_is_enough(plan)
        assert is_enough != any("device_map alone" in str(said) for said in notices(plan)), pair
        most = max(shares(plan, UNLIKE, virtual_accelerators, load_map if is_enough else None))
        assert most <= 1, (pair, most, plan.device_map, plan.execution_map)
        enough += is_enough
    assert enough >= least


def test_a_map_that_is_not_enough_says_so_and_breaks_the_budgets(virtual_accelerators: Accelerators) -> None:
    """The first card holds one layer and has no room to stream another; the second streams, and the map names both."""
    plan = planned(ALIKE, 1.0, 3.0)
    assert set(plan.execution_map.values()) == {1} and plan.device_map["0"] == 0
    assert not map_is_enough(plan)
    assert shares(plan, ALIKE, virtual_accelerators, by_the_map_alone)[0] > 1
    assert (
        max(shares(plan, ALIKE, virtual_accelerators, planner.dispatch_model)) <= 1
    )  # it reads what the map carries
    assert max(shares(plan, ALIKE, virtual_accelerators, None)) <= 1
    said = "device_map alone would run what is offloaded on GPU 0; this plan runs it on GPU 1: use planner.dispatch(model, plan)."
    assert said in map(str, notices(plan))


def test_dispatch_reads_what_the_device_map_of_a_plan_carries(virtual_accelerators: Accelerators) -> None:
    plan = planned(ALIKE, 1.0, 3.0)
    assert not map_is_enough(plan)
    assert max(shares(plan, ALIKE, virtual_accelerators, planner.dispatch)) <= 1
    plain = shares(plan, ALIKE, virtual_accelerators, lambda model, said: planner.dispatch(model, dict(said)))
    assert plain[0] > 1, "a map that says nothing of it is streamed to its first accelerator"


def test_what_was_moved_in_the_device_map_of_a_plan_runs_where_it_was_moved() -> None:
    plan = planned(ALIKE, 1.0, 3.0)
    edited = plan.device_map
    moved = next(name for name in plan.execution_map if edited[name] == "cpu")
    edited[moved] = 0
    model = planner.dispatch(layers(ALIKE), edited)
    assert model.get_submodule(moved).weight.device.index == 0
    model(X)


def test_what_the_cpu_is_to_run_needs_the_execution_map() -> None:
    plan = planned(ALIKE, 2.0, 2.0, execute_offloaded="cpu")
    assert not map_is_enough(plan)
    assert any("this plan runs it on the CPU" in str(said) for said in notices(plan))
