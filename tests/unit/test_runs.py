"""Runs of a plan, from the plan alone: in the order of execution, maximal, and to the byte."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import planner
from generators import Case, cases
from planner import Plan
from planner.devices.keys import DeviceKey
from planner.errors import InfeasibleError
from planner.model.tree import ModuleTree
from planner.plans.runs import Run, runs_of

STRATEGIES = ["auto", "sequential", "balanced", "balanced_low_0"]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.up(x)))


class Decoder(nn.Module):
    """An embedding, six layers of 1024 bytes, and a head that is tied to the embedding."""

    _no_split_modules = ("Layer",)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(6))
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embed.weight


def planned(case: Case, strategy: str, granularity: str) -> Plan | None:
    budgets = {device: int(size) for device, size in case.max_memory.items()}
    try:
        return planner.plan(
            case.model, max_memory=budgets, strategy=strategy, granularity=granularity
        )  # fmt: skip
    except InfeasibleError:
        return None


def without_block_bytes(plan: Plan) -> Plan:
    """The plan as it was written before plans had bytes of blocks."""
    data = json.loads(plan.to_json())
    data["block_bytes"] = {}
    return Plan.from_json(json.dumps(data))


def bytes_by_home(runs: tuple[Run, ...]) -> dict[DeviceKey, int]:
    found: Counter[DeviceKey] = Counter()
    for run in runs:
        assert run.size_bytes is not None
        found[run.home] += run.size_bytes
    return dict(+found)


@given(cases(), st.sampled_from(STRATEGIES), st.sampled_from(["block", "module", "expert"]))
def test_bytes_add_up_to_those_of_the_devices(case: Case, strategy: str, granularity: str) -> None:
    """Of any model, with ties and odd element types, and after the plan was written and read."""
    plan = planned(case, strategy, granularity)
    if plan is None:
        return
    used = {device.id: device.used_bytes for device in plan.devices if device.used_bytes}
    assert bytes_by_home(runs_of(plan)) == used
    assert runs_of(Plan.from_json(plan.to_json())) == runs_of(plan)


@given(cases(), st.sampled_from(STRATEGIES))
def test_every_tensor_lies_and_runs_as_its_run_says(case: Case, strategy: str) -> None:
    plan = planned(case, strategy, "block")
    if plan is None:
        return
    names = ["", *ModuleTree.from_module(case.model).columns.names()]
    position = {name: number for number, name in enumerate(names)}
    runs = runs_of(plan)
    starts = [position[run.first] for run in runs]
    assert starts == sorted(starts)
    for before, after in pairwise(runs):
        assert (before.home, before.runs_on) != (after.home, after.runs_on)
    placed = {name: (run.home, run.runs_on) for run in runs for name in (run.first, run.last)}
    for name, (home, runs_on) in placed.items():
        around = [name]
        while around[-1]:
            around.append(around[-1].rpartition(".")[0])
        assert next(plan.device_map[key] for key in around if key in plan.device_map) == home
        running = [plan.execution_map[key] for key in around if key in plan.execution_map]
        assert (running or [home])[0] == runs_on
    assert sum(run.count for run in runs) == len(plan.block_bytes)


def test_a_model_in_one_piece_is_one_run_of_its_blocks() -> None:
    """The device map is {"": 0} there, so the blocks come from elsewhere, with every strategy."""
    for strategy in STRATEGIES:
        plan = planner.plan(Decoder(), max_memory={0: 100_000}, strategy=strategy)
        assert runs_of(plan) == (Run("embed", "head", 8, 1600 + 6 * 1024, 0, 0),)


def test_runs_stand_in_the_order_of_execution() -> None:
    """The embedding with the head that is tied to it, both on 0: its bytes are counted where it is met first."""
    plan = planner.plan(Decoder(), max_memory={0: 5000, 1: 2100, "cpu": 10_000})
    runs = runs_of(plan)
    assert runs[0].first == "embed" and runs[-1].last == "head" and runs[0].home == runs[-1].home == 0
    assert runs[-1].size_bytes == 0 or len(runs) == 1
    assert any(run.home == "cpu" and run.runs_on == 0 for run in runs)


def test_runs_inside_a_module() -> None:
    plan = planner.plan(Decoder(), max_memory={0: 3700, "cpu": 10_000})
    inside = runs_of(plan, "layers")
    assert (inside[0].first, inside[-1].last) == ("layers.0", "layers.5")
    assert sum(run.size_bytes or 0 for run in inside) == 6 * 1024
    assert [run.count for run in runs_of(plan, "layers.2")] == [1]
    assert runs_of(plan, "layers.2.up") == ()


def test_blocks_kept_together_have_their_own_bytes() -> None:
    """The decision compares both; each run has what lies in it."""
    plan = planner.plan(
        Decoder(), max_memory={0: 3700, 1: 5000}, keep_together=[["layers.0", "layers.5"]], strategy="auto"
    )
    assert all(run.size_bytes == run.count * 1024 for run in runs_of(plan, "layers"))


def test_a_block_that_the_map_takes_apart_is_its_parts() -> None:
    class Tower(nn.Module):
        _no_split_modules = ("Layer",)

        def __init__(self) -> None:
            super().__init__()
            self.side = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
            self.layers = nn.ModuleList([Layer()])

    plan = planner.plan(Tower(), max_memory={0: 300, "cpu": 10_000}, strategy="auto", granularity="module")
    assert bytes_by_home(runs_of(plan)) == {
        device.id: device.used_bytes for device in plan.devices if device.used_bytes
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_plan_of_before_has_its_runs_without_bytes(strategy: str) -> None:
    plan = planner.plan(Decoder(), max_memory={0: 5000, "cpu": 10_000}, strategy=strategy)
    old = runs_of(without_block_bytes(plan))
    assert {run.size_bytes for run in old} == {None}
    assert [(run.home, run.runs_on) for run in old if run.first != "head"][:2] == [
        (run.home, run.runs_on) for run in runs_of(plan)
    ][:2]


def test_plan_without_a_tensor_has_no_runs() -> None:
    assert runs_of(planner.plan(nn.Sequential(nn.ReLU()), max_memory={0: 10})) == ()
