"""The plan as an object: its JSON, its equality, its difference from another."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import Plan
from planner.errors import InvalidConfigError, InvalidInputError, PlannerError
from planner.plans.diff import PlanDifference, UsageDifference


def leaf(size_bytes: int) -> nn.Module:
    module = nn.Module()
    module.w = nn.Parameter(torch.empty(size_bytes, dtype=torch.uint8, device="meta"), requires_grad=False)
    return module


def model() -> nn.Module:
    """embed 10, four layers of 20, head 30."""
    root = nn.Module()
    root.embed = leaf(10)
    root.layers = nn.ModuleList(leaf(20) for _ in range(4))
    root.head = leaf(30)
    return root


def fitting() -> Plan:
    return planner.plan(model(), max_memory={0: 50, 1: 70, "cpu": 500})


def offloading() -> Plan:
    """One card of 70 keeps 50 and streams into 20; of the 70 others 40 find room on the cpu."""
    return planner.plan(model(), max_memory={0: 70, "cpu": 40, "disk": 200})


def sequential() -> Plan:
    return planner.plan(model(), max_memory={0: 40, "cpu": 60, "disk": 1000}, strategy="sequential")


PLANS = pytest.mark.parametrize("made", [fitting, offloading, sequential])


# ---- JSON

PARTS = (
    *("source", "devices", "device_map", "execution_map", "offloaded_bytes", "certificate"),
    *("block_bytes", "names", "reasons", "shortfall", "settings"),
)


@PLANS
def test_a_plan_comes_back_from_its_json(made: Any) -> None:
    plan = made()
    back = Plan.from_json(plan.to_json())
    assert back == plan
    assert back.to_json() == plan.to_json()
    assert dict(back.provenance) == dict(plan.provenance)


@PLANS
def test_a_plan_comes_back_equal_in_every_part(made: Any) -> None:
    plan = made()
    back = Plan.from_json(plan.to_json())
    for part in ("source", "devices", "certificate", "reasons", "shortfall", "offloaded_bytes"):
        assert getattr(back, part) == getattr(plan, part), part
    assert list(back.device_map.items()) == list(plan.device_map.items())
    assert list(back.execution_map.items()) == list(plan.execution_map.items())
    assert dict(back.settings) == dict(plan.settings)


def test_device_numbers_are_numbers_again_after_a_round_trip() -> None:
    back = Plan.from_json(offloading().to_json())
    assert [device.id for device in back.devices] == [0, "cpu", "disk"]
    assert set(back.device_map.values()) == {0, "cpu", "disk"}
    assert set(back.shortfall.more_bytes) <= {0}


def test_the_json_is_one_line_without_blanks() -> None:
    text = offloading().to_json()
    assert "\n" not in text
    assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))


def test_names_of_any_alphabet_survive() -> None:
    root = nn.Module()
    root.add_module("Schicht_ä·層", leaf(4))
    plan = planner.plan(root, max_memory={0: 10})
    assert Plan.from_json(plan.to_json()) == plan
    assert "ä" in plan.to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"planner.plan"',
        "{}",
        '{"schema":"planner.plan"}',
        '{"schema":"planner.plan","version":1}',
        '{"schema":"another","version":1}',
        "[" * 100_000,
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        Plan.from_json(text)


@pytest.mark.parametrize("version", [0, 5, "1", None, 1.5, True, [1]])
def test_an_unknown_version_is_refused_and_named(version: object) -> None:
    data = json.loads(fitting().to_json())
    with pytest.raises(InvalidInputError, match="version"):
        Plan.from_json(json.dumps({**data, "version": version}))


@pytest.mark.parametrize("key", PARTS)
@pytest.mark.parametrize("value", ["absent", 7, "text", [1], [[1]], {"a": [1]}])
def test_a_plan_with_a_damaged_part_is_refused(key: str, value: object) -> None:
    if (key, value) == ("block_bytes", "absent"):
        return  # plans of before have none
    data = json.loads(offloading().to_json())
    data[key] = value
    if value == "absent":
        del data[key]
    with pytest.raises(InvalidInputError):
        Plan.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("source", "blocks", "3"),
        ("source", "fingerprint", 3),
        ("devices", "used_bytes", 1.0),
        ("devices", "used_bytes", True),
        ("devices", "budget_bytes", "100"),
        ("devices", "origin", None),
        ("certificate", "proven", 1),
        ("certificate", "steps", None),
        ("reasons", "needed_bytes", "7"),
        ("reasons", "available_bytes", 0.5),
        ("reasons", "name", ["a"]),
        ("shortfall", "name", 1),
        ("settings", "rank", 3),
    ],
)
def test_a_field_of_another_type_is_refused_by_name(key: str, field: str, value: object) -> None:
    data = json.loads(offloading().to_json())
    part = next(iter(data[key].values())) if key == "settings" else data[key]
    row = part[0] if isinstance(part, list) else part
    assert field in row
    row[field] = value
    with pytest.raises(InvalidInputError, match=f"{field} must be"):
        Plan.from_json(json.dumps(data))


def test_json_without_provenance_is_read() -> None:
    plan = fitting()
    back = Plan.from_json(plan.to_json(provenance=False))
    assert back == plan
    assert back.provenance == {}


# ---- Equality


def test_equality_and_hash_leave_provenance_out() -> None:
    plan = fitting()
    other = Plan.from_json(
        json.dumps({**json.loads(plan.to_json()), "provenance": {"mode": "somewhere else"}})
    )
    assert plan == other
    assert hash(plan) == hash(other)
    assert len({plan, other}) == 1
    assert plan.to_json() != other.to_json()
    assert plan.to_json(provenance=False) == other.to_json(provenance=False)


def test_one_problem_said_on_two_lines_is_one_plan() -> None:
    budgets = {0: 50, 1: 70, "cpu": 500}
    first = planner.plan(model(), max_memory=budgets)
    second = planner.plan(model(), max_memory=budgets)
    assert first == second
    assert hash(first) == hash(second)


def test_other_budgets_or_another_map_make_another_plan() -> None:
    plan = fitting()
    assert plan != planner.plan(model(), max_memory={0: 51, 1: 70, "cpu": 500})
    assert plan != replace(plan, device_map={**plan.device_map, "embed": 1})
    assert plan != plan.to_json()


def test_a_plan_is_frozen_and_survives_copies() -> None:
    plan = offloading()
    with pytest.raises(FrozenInstanceError):
        plan.device_map = {}  # type: ignore[misc]
    assert copy.deepcopy(plan) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_the_maps_of_a_plan_cannot_be_changed() -> None:
    plan = offloading()
    for part in ("offloaded_bytes", "settings", "provenance"):
        with pytest.raises(TypeError):
            getattr(plan, part)["embed"] = 1


# ---- Contents


def test_the_map_covers_with_the_fewest_keys_in_execution_order() -> None:
    plan = planner.plan(model(), max_memory={0: 90, 1: 200}, strategy={"fill": "in_order"})
    assert list(plan.device_map.items()) == [("embed", 0), ("layers", 0), ("head", 1)]


def test_a_model_on_one_device_has_one_key() -> None:
    assert dict(planner.plan(model(), max_memory={3: 200}).device_map) == {"": 3}


@PLANS
def test_each_budget_is_headroom_used_reserved_and_free(made: Any) -> None:
    plan = made()
    for device in plan.devices:
        parts = (device.headroom_bytes, device.used_bytes, device.reserved_bytes, device.free_bytes)
        assert device.budget_bytes is None or device.budget_bytes == sum(parts), device
    assert sum(device.used_bytes for device in plan.devices) == plan.source.total_bytes == 120


def test_what_is_offloaded_adds_up_and_says_why() -> None:
    plan = offloading()
    assert dict(plan.offloaded_bytes) == {"cpu": 40, "disk": 30}
    assert plan.certificate.proven
    assert plan.certificate.stage == "offload"
    offloaded = [reason for reason in plan.reasons if reason.rule == "offloaded"]
    assert sum(reason.needed_bytes for reason in offloaded) == 70
    refused = [reason for reason in plan.reasons if reason.rule == "no_room"]
    assert {reason.name for reason in refused} == {reason.name for reason in offloaded}
    assert all(reason.available_bytes < reason.needed_bytes for reason in refused)
    assert set(plan.execution_map.values()) == {0}


def test_the_shortfall_alone_is_enough_and_one_byte_less_is_not() -> None:
    plan = offloading()
    more = plan.shortfall.more_bytes[0]
    budgets = {"cpu": 40, "disk": 200}
    assert sum(planner.plan(model(), max_memory={0: 70 + more, **budgets}).offloaded_bytes.values()) == 0
    assert sum(planner.plan(model(), max_memory={0: 69 + more, **budgets}).offloaded_bytes.values()) > 0


def test_a_plan_that_fits_has_no_shortfall() -> None:
    plan = fitting()
    assert plan.shortfall is None
    assert dict(plan.offloaded_bytes) == {"cpu": 0, "disk": 0}
    assert {reason.rule for reason in plan.reasons} == {"resident"}


# ---- Many budgets


def test_many_budgets_may_name_different_devices() -> None:
    """A pin is a device, not its position among the devices of one row."""
    rows = [{0: 60, 1: 60, 2: 60}, {1: 200, 2: 60}, {0: 60, 2: 200, "cpu": 100}, {2: 20}]
    together = planner.plan_many(model(), rows, pin={"head": 2})
    for row, found in zip(rows[:3], together, strict=False):
        assert found == planner.plan(model(), max_memory=row, pin={"head": 2})
        assert isinstance(found, Plan) and found.device_map["head"] == 2
    assert isinstance(together[3], planner.InfeasibleError)


# ---- Experts


def mixture(*, is_fused: bool) -> nn.Module:
    root = nn.Module()
    root.layers = nn.ModuleList(nn.Module() for _ in range(2))
    for layer in root.layers:
        layer.router = leaf(10)
        layer.experts = leaf(160) if is_fused else nn.ModuleList(leaf(40) for _ in range(4))
    return root


def test_experts_in_one_tensor_are_said_to_stay_together() -> None:
    fused = planner.plan(mixture(is_fused=True), max_memory={0: 500}, granularity="expert")
    told = [reason for reason in fused.reasons if reason.rule == "fused_experts"]
    assert [reason.name for reason in told] == ["layers.0.experts", "layers.1.experts"]
    assert "cannot be split by expert" in planner.explain(fused, "layers.1.experts")


@pytest.mark.parametrize(("is_fused", "granularity"), [(False, "expert"), (True, "block")])
def test_nothing_is_said_of_experts_that_are_apart_or_were_not_asked_for(
    is_fused: bool, granularity: str
) -> None:
    plan = planner.plan(mixture(is_fused=is_fused), max_memory={0: 500}, granularity=granularity)
    assert not any(reason.rule == "fused_experts" for reason in plan.reasons)


# ---- The first block


def first_blocks(plan: Plan) -> list[tuple[str, Any]]:
    return [(reason.name, reason.device) for reason in plan.reasons if reason.rule == "first_block"]


def test_the_first_block_is_said_to_be_kept_where_something_is_offloaded() -> None:
    root = model()
    root.register_buffer("positions", torch.zeros(3, device="meta"))  # says nothing of where inputs belong
    plan = planner.plan(root, max_memory={0: 92, "cpu": 500})
    assert plan.offloaded_bytes["cpu"] and first_blocks(plan) == [("embed", 0)]
    assert "inputs belong" in planner.explain(plan, "embed")
    assert not first_blocks(planner.plan(root, max_memory={0: 500, "cpu": 500}))
    assert not first_blocks(planner.plan(root, max_memory={0: 92, "cpu": 500}, pin={"embed": "cpu"}))


# ---- Difference and words


def test_a_plan_does_not_differ_from_itself() -> None:
    found = fitting().diff(fitting())
    assert not found
    assert str(found) == "everything lies where it lay"


def test_the_difference_names_both_devices_as_data_and_in_words() -> None:
    plan = fitting()
    moved = replace(plan, device_map={**plan.device_map, "embed": "cpu"})
    assert plan.diff(moved).moved == (PlanDifference("embed", 0, "cpu"),)
    assert [str(found) for found in plan.diff(moved)] == ["embed: 0 → cpu"]
    assert moved.diff(plan).moved == (PlanDifference("embed", "cpu", 0),)


def test_runs_of_names_that_move_alike_are_one_line() -> None:
    one = planner.plan(model(), max_memory={0: 500})
    two = planner.plan(model(), max_memory={0: 30, 1: 500}, strategy={"fill": "in_order"})
    found = one.diff(two)
    assert str(found).splitlines() == [
        "layers.1 to head (4 names): 0 → 1",
        "0: 120 B → 30 B used",
        "1: 0 B → 90 B used",
    ]
    assert found.to_data()["usage"][0] == {
        "device": 0,
        "left_used_bytes": 120,
        "right_used_bytes": 30,
        "left_running_bytes": 0,
        "right_running_bytes": 0,
    }


def test_usage_that_prints_alike_is_told_in_bytes() -> None:
    assert str(UsageDifference(0, 2**30, 2**30 + 1)) == f"0: {2**30} B → {2**30 + 1} B used"


def test_the_difference_reads_maps_of_unlike_keys() -> None:
    one = planner.plan(model(), max_memory={0: 500})
    two = planner.plan(model(), max_memory={0: 90, 1: 200}, strategy={"fill": "in_order"})
    assert {(found.name, found.left, found.right) for found in one.diff(two)} >= {("head", 0, 1)}
    assert not any(found.name in ("embed", "layers") for found in one.diff(two))


def test_a_name_whose_parts_have_keys_is_told_by_its_parts_in_either_plan() -> None:
    whole = planner.plan(model(), max_memory={0: 500})
    parts = planner.plan(model(), max_memory={0: 90, 1: 200}, strategy={"fill": "in_order"})
    for left, right in ((whole, parts), (parts, whole)):
        assert all(None not in (found.left, found.right) for found in left.diff(right))
        assert "" not in [found.name for found in left.diff(right)]


@PLANS
def test_the_repr_is_small_and_says_where_the_bytes_are(made: Any) -> None:
    plan = made()
    assert len(repr(plan)) < 200
    assert "\n" not in repr(plan)
    assert all(str(device.used_bytes) in repr(plan) for device in plan.devices)


# ---- Determinism

PROGRAM = """
import sys, torch, planner
from torch import nn
class Layer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.w = nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
root = nn.Module()
root.embed = Layer(17)
root.layers = nn.ModuleList(Layer(20 + index % 5 * 3) for index in range(24))
root.head = Layer(17)
root.head.w = root.embed.w
root.norm = Layer(3)
for settings in (
    {}, {"granularity": "module"}, {"strategy": {"fill": "fewest"}}, {"mode": "no_disk"},
    {"pin": {"layers.3": 1, "head": 0}, "forbid": {"layers.4": [0], "layers.5": [1]}},
    {"keep_together": [["layers.7", "layers.2"]]}, {"strategy": "balanced"},
):
    for budgets in ({0: 150, 1: 300, 2: 220}, {0: 150, 1: 140, "cpu": 1000}, {0: 70, 1: 90, "cpu": 400, "disk": 1000}):
        try:
            print(planner.plan(root, max_memory=budgets, **settings).to_json())
        except planner.PlannerError as error:
            print(type(error).__name__, error, sorted(map(str, error.fields)))
"""


def test_two_processes_with_other_hash_seeds_write_the_same_bytes() -> None:
    said = []
    for seed in ("1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, timeout=120, check=True
        )
        said.append(done.stdout)
    assert said[0] == said[1]
    assert said[0].count(b'"schema":"planner.plan"') >= 12


@pytest.mark.parametrize("row", [{"gpu": 1}, {0: "much"}, {0: -1}, 5, "1GB", {0: 1, "cuda:0": 2}, {None: 3}])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_bad_row_of_budgets_is_the_same_error_anywhere(row: Any, position: int) -> None:
    rows: list[Any] = [{0: 400}, {0: 800}]
    rows.insert(position, row)
    with pytest.raises(PlannerError) as alone:
        planner.plan(model(), max_memory=row)
    with pytest.raises(PlannerError) as many:
        planner.plan_many(model(), rows)
    assert type(many.value) is type(alone.value)
    if isinstance(many.value, InvalidConfigError) and isinstance(alone.value, InvalidConfigError):
        assert many.value.message.startswith(f"budgets {position} of plan_many: ")
        told = [[problem.what for problem in error.problems] for error in (alone.value, many.value)]
        assert told[0] == told[1]


def test_one_block_is_one_block() -> None:
    plan = planner.plan(torch.nn.Linear(2, 2, bias=False), max_memory={0: 100})
    assert (plan.source.blocks, repr(plan)[:13]) == (1, "Plan(1 block,")
    assert plan.summary().startswith("1 block, ")
    assert ", 1 block<" in plan._repr_html_()
