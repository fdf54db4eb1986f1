"""What the pictures draw: the plan's names, bytes and devices, with the model and without it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from drawn_models import MIB, Decoder, drawn_bytes, offloaded, resident, sequential, tensors
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import planner
from generators import Case, cases
from planner import Plan
from planner.errors import InfeasibleError, PlanMismatchError
from planner.model.tree import ModuleTree
from planner.report.rows import NOTHING, SEVERAL, plan_rows, preorder, uncounted_notices

Made = Callable[[], tuple[Plan, ModuleTree]]
PLANS = pytest.mark.parametrize("made", [offloaded, resident, sequential])


def planned(case: Case, strategy: str) -> tuple[Plan, ModuleTree] | None:
    """A plan of a generated case; None where there is none."""
    tree = ModuleTree.from_module(case.model)
    budgets = {device: int(size) for device, size in case.max_memory.items()}
    try:
        return planner.plan(tree, max_memory=budgets, strategy=strategy), tree
    except InfeasibleError:
        return None


# ---- bytes and devices


@PLANS
def test_bytes_by_device_are_those_of_the_plan(made: Made) -> None:
    plan, tree = made()
    used = {device.id: device.used_bytes for device in plan.devices if device.used_bytes}
    assert drawn_bytes(plan_rows(plan, tree)) == used
    assert drawn_bytes(plan_rows(plan)) == used


@given(cases(), st.sampled_from(["auto", "sequential"]))
def test_bytes_by_device_are_those_of_any_plan(case: Case, strategy: str) -> None:
    """To the byte, with the model and without it; from a plan of before, with what it leaves open said."""
    made = planned(case, strategy)
    if made is None:
        return
    plan, tree = made
    used = {device.id: device.used_bytes for device in plan.devices if device.used_bytes}
    assert drawn_bytes(plan_rows(plan, tree)) == used
    assert drawn_bytes(plan_rows(plan)) == used
    data = json.loads(plan.to_json())
    data["block_bytes"] = {}
    alone = plan_rows(Plan.from_json(json.dumps(data)))
    told = drawn_bytes(alone)
    for device in plan.devices:
        left = alone.uncounted_bytes.get(device.id, 0)
        assert told.get(device.id, 0) + left == device.used_bytes
    assert len(uncounted_notices(alone)) == len(alone.uncounted_bytes)


@given(cases())
def test_every_tensor_is_drawn_where_it_lies(case: Case) -> None:
    made = planned(case, "auto")
    if made is None:
        return
    plan, tree = made
    rows = plan_rows(plan, tree)
    index = {name: row for row, name in enumerate(rows.names)}
    for name in tree.uncovered(())[1]:
        prefix = name
        while prefix not in plan.device_map:
            prefix = prefix.rpartition(".")[0]
        assert rows.devices[rows.homes[index[name]]] == plan.device_map[prefix]


def test_modules_on_several_devices_and_on_none() -> None:
    plan, tree = offloaded()
    rows = plan_rows(plan, tree)
    home = dict(zip(rows.names, rows.homes, strict=True))
    assert home[""] == home["model.layers"] == SEVERAL
    assert home["model.layers.0.mlp.act"] == NOTHING
    assert home["model.layers.0"] == 0


def test_what_is_offloaded_runs_where_the_plan_says() -> None:
    plan, tree = offloaded()
    rows = plan_rows(plan, tree)
    assert plan.execution_map
    for name, device in plan.execution_map.items():
        assert rows.devices[rows.runs[rows.names.index(name)]] == device


def test_a_tied_tensor_is_counted_once_and_says_where() -> None:
    plan, tree = resident()
    rows = plan_rows(plan, tree)
    head, embedding = rows.names.index("head.weight"), rows.names.index("model.embed.weight")
    assert rows.originals == {head: embedding}
    assert (rows.sizes_bytes[head], rows.sizes_bytes[embedding]) == (0, 5 * MIB)


def test_bytes_are_those_of_the_dtype_that_was_planned() -> None:
    """Loading as another type changes the plan's bytes, and the picture's with them."""
    tree = ModuleTree.from_module(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    plan = planner.plan(
        tree, max_memory={0: 10_000}, dtype="bfloat16", special_dtypes={"1.weight": torch.float64}
    )
    assert drawn_bytes(plan_rows(plan, tree)) == {0: 8 * 8 * 2 + 8 * 8 * 8 + 2 * 8 * 2}


@PLANS
def test_a_plan_that_was_written_and_read_is_drawn_alike(made: Made) -> None:
    plan, _ = made()
    before, after = plan_rows(plan), plan_rows(Plan.from_json(plan.to_json()))
    for column in ("devices", "names", "parents", "sizes_bytes", "homes", "runs", "uncounted_bytes"):
        assert getattr(before, column) == getattr(after, column)


def test_another_model_is_refused() -> None:
    """By its names, and by its bytes."""
    plan, _ = offloaded()
    with pytest.raises(PlanMismatchError, match="has no 'model") as caught:
        plan_rows(plan, ModuleTree.from_module(nn.Sequential(nn.Linear(2, 2))))
    assert caught.value.findings
    with pytest.raises(PlanMismatchError, match=f"places {plan.source.total_bytes} bytes"):
        model = Decoder(12)
        tensors(model.model.norm, more=1)
        plan_rows(plan, ModuleTree.from_module(model))


@given(st.lists(st.text(alphabet="ab.", max_size=6), max_size=12))
def test_names_stand_in_preorder(names: list[str]) -> None:
    """Whatever dots they have: all there, once, parents first, each subtree in one piece."""
    ordered = preorder(names)
    assert set(names) <= set(ordered)
    assert len(set(ordered)) == len(ordered)
    index = {name: row for row, name in enumerate(ordered)}
    parents = [index[name.rpartition(".")[0]] for name in ordered[1:]]
    path = [0]
    for row, above in enumerate(parents, start=1):
        assert above in path
        path = [*path[: path.index(above) + 1], row]
