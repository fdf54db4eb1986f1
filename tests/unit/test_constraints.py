"""What the user wants of single modules: where it holds, and what is said where it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import Plan
from planner.checker.check import check
from planner.errors import InfeasibleError, InvalidConfigError, InvalidConstraintError, InvalidDevicesError


class Leaf(nn.Module):
    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(size_bytes, dtype=torch.uint8, device="meta"), requires_grad=False)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Leaf(8), Leaf(12)


class WideLayer(Layer):
    """A subclass: its own name is another one."""


def model() -> nn.Module:
    """embed 10, four layers of 8 + 12, head 30."""
    root = nn.Module()
    root.embed = Leaf(10)
    root.layers = nn.ModuleList([Layer(), WideLayer(), Layer(), WideLayer()])
    root.head = Leaf(30)
    return root


def plan(built: nn.Module | None = None, /, **settings: Any) -> Plan:
    """A plan, judged by the checker that shares no code with the planner."""
    built = model() if built is None else built
    settings = {"max_memory": {0: 100, 1: 100, "cpu": 200}, **settings}
    made = planner.plan(built, **settings)
    budgets = {device.id: device.budget_bytes - device.headroom_bytes for device in made.devices}
    assert check(built, dict(made.device_map), budgets) == ()
    return made


def device_of(name: str, made: Plan) -> int | str:
    while name not in made.device_map:
        name = name.rpartition(".")[0]
    return made.device_map[name]


def refusal(**settings: Any) -> InvalidConstraintError:
    with pytest.raises(InvalidConstraintError) as caught:
        planner.plan(model(), **{"max_memory": {0: 100, 1: 100, "cpu": 200}, **settings})
    return caught.value


# ---- Pin and forbid


@pytest.mark.parametrize("device", [0, 1, "cpu"])
@pytest.mark.parametrize("name", ["embed", "layers.2", "head"])
def test_a_pinned_module_lies_where_it_is_pinned(name: str, device: int | str) -> None:
    assert device_of(name, plan(pin={name: device})) == device


def test_a_pin_of_a_container_holds_for_all_that_is_inside() -> None:
    made = plan(pin={"layers": 1})
    assert {device_of(f"layers.{index}", made) for index in range(4)} == {1}


def test_a_pin_of_a_part_holds_for_its_block() -> None:
    made = plan(pin={"layers.2.mlp": 1, "layers.3.attention.w": 0})
    assert (device_of("layers.2.attention", made), device_of("layers.3.mlp", made)) == (1, 0)


def test_a_pin_of_the_root_holds_for_everything() -> None:
    assert dict(plan(max_memory={0: 200, 1: 200}, pin={"": 1}).device_map) == {"": 1}


def test_what_is_pinned_to_the_cpu_counts_as_offloaded_and_no_more_than_that() -> None:
    made = plan(pin={"embed": "cpu"})
    assert dict(made.offloaded_bytes) == {"cpu": 10, "disk": 0}
    assert made.certificate.proven
    assert made.execution_map["embed"] in (0, 1)


@pytest.mark.parametrize("spelling", [1, "1", "cuda:1"])
def test_devices_of_constraints_may_be_spelled_in_any_way(spelling: int | str) -> None:
    assert device_of("head", plan(pin={"head": spelling})) == 1
    assert device_of("head", plan(forbid={"head": (spelling,)})) == 0


def test_a_forbidden_device_is_left_out() -> None:
    assert device_of("head", plan(forbid={"head": (1,)})) == 0
    assert device_of("head", plan(forbid={"head": (0, 1)})) == "cpu"


def test_a_forbid_of_a_container_holds_for_all_that_is_inside() -> None:
    made = plan(forbid={"layers": (0,)}, max_memory={0: 100, 1: 100})
    assert {device_of(f"layers.{index}", made) for index in range(4)} == {1}


def test_pins_come_before_contiguity() -> None:
    made = plan(pin={"layers.0": 1, "layers.1": 0, "layers.2": 1, "layers.3": 0})
    assert [device_of(f"layers.{index}", made) for index in range(4)] == [1, 0, 1, 0]
    assert made.certificate.returns >= 2


def test_pins_that_cannot_be_held_within_the_budget_are_infeasible() -> None:
    with pytest.raises(InfeasibleError) as caught:
        planner.plan(model(), max_memory={0: 35, 1: 200}, pin={"head": 0, "embed": 0})
    assert caught.value.more_bytes == {0: 5}
    assert caught.value.is_proven


# ---- Together and whole


def test_what_is_kept_together_shares_a_device() -> None:
    made = plan(keep_together=[["embed", "head"], ["layers.0", "layers.3"]])
    assert device_of("embed", made) == device_of("head", made)
    assert device_of("layers.0", made) == device_of("layers.3", made)


def test_groups_that_overlap_are_one_group() -> None:
    made = plan(keep_together=[["embed", "layers.3"], ["layers.3", "head"]], max_memory={0: 70, 1: 70})
    assert len({device_of(name, made) for name in ("embed", "layers.3", "head")}) == 1


def test_a_group_of_containers_takes_all_their_blocks() -> None:
    made = plan(keep_together=[["layers", "head"]], max_memory={0: 20, 1: 110})
    assert dict(made.device_map) == {"embed": 0, "layers": 1, "head": 1}


def test_a_pin_of_one_member_moves_its_whole_group() -> None:
    made = plan(keep_together=[["embed", "head"]], pin={"embed": 1})
    assert (device_of("embed", made), device_of("head", made)) == (1, 1)


def test_tied_modules_follow_one_pin() -> None:
    root = model()
    root.tail = Leaf(10)
    root.tail.w = root.embed.w
    made = plan(root, pin={"tail": 1})
    assert (device_of("embed", made), device_of("tail", made)) == (1, 1)
    assert sum(device.used_bytes for device in made.devices) == 120


def test_a_module_that_must_not_be_split_is_one_block() -> None:
    apart = plan(max_memory={0: 70, 1: 110})
    whole = plan(max_memory={0: 70, 1: 110}, no_split_modules=["layers"])
    assert len({device_of(f"layers.{index}", apart) for index in range(4)}) == 2
    assert whole.device_map["layers"] == 1
    assert whole.source.blocks == 3


def test_a_block_that_fits_nowhere_whole_goes_to_the_cpu() -> None:
    made = plan(max_memory={0: 60, 1: 60, "cpu": 200}, no_split_modules=["layers"])
    assert made.device_map["layers"] == "cpu"
    assert [reason.name for reason in made.reasons if reason.rule == "oversized"] == ["layers"]


@pytest.mark.parametrize("granularity", ["block", "module", "expert"])
def test_the_model_itself_can_be_what_must_not_be_split(granularity: str) -> None:
    said = {"no_split_modules": [""], "granularity": granularity}
    made = plan(max_memory={0: 110, 1: 130}, **said)
    assert dict(made.device_map) == {"": 1}
    assert made.source.blocks == 1
    made = plan(max_memory={0: 110, 1: 110, "cpu": 200}, **said)
    assert dict(made.device_map) == {"": "cpu"}
    made = plan(max_memory={0: 110, 1: 130, "cpu": 200}, forbid={"head": [0, 1]}, **said)
    assert (dict(made.device_map), dict(made.execution_map)) == ({"": "cpu"}, {"": 1})
    with pytest.raises(InfeasibleError, match=r"the whole model \(120 B\) finds no place") as caught:
        planner.plan(model(), max_memory={0: 110, 1: 110}, **said)
    assert caught.value.more_bytes == {0: 10, 1: 10}


# ---- Classes


def blocks_of(**settings: Any) -> int:
    return plan(**settings).source.blocks


def test_repeated_siblings_are_the_blocks_where_nobody_says_a_class() -> None:
    assert blocks_of() == 6


def test_a_class_is_matched_by_its_own_name_or_by_a_base_class() -> None:
    assert blocks_of(no_split_module_classes=["Leaf"]) == 10
    assert blocks_of(no_split_module_classes=["Leaf", "WideLayer"]) == 8
    assert blocks_of(no_split_module_classes=["Leaf", "Layer"]) == 6
    assert blocks_of(no_split_module_classes=["ModuleList"]) == 3


def test_the_root_is_split_whatever_its_class() -> None:
    assert blocks_of(no_split_module_classes=["Module"]) > 1


def test_the_models_own_classes_hold_if_it_has_them() -> None:
    root = model()
    root._no_split_modules = ["ModuleList", "NotThere"]
    assert plan(root).source.blocks == 3
    assert plan(root, no_split_module_classes=["Layer"]).source.blocks == 6


def test_an_unknown_class_is_named_with_the_nearest_one() -> None:
    error = refusal(no_split_module_classes=["Lyer", "Layer"])
    assert (error.names, error.suggestions) == (("Lyer",), ("Layer",))
    assert "'Lyer'" in str(error)
    assert "did you mean 'Layer'" in str(error)


# ---- Names that match nothing


@pytest.mark.parametrize(
    "settings",
    [
        {"pin": {"layers.2.mpl": 0}},
        {"forbid": {"layers.2.mpl": (0,)}},
        {"keep_together": [["embed", "layers.2.mpl"]]},
        {"no_split_modules": ["layers.2.mpl"]},
        {"special_dtypes": {"layers.2.mpl": "float16"}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_name_that_matches_nothing_is_named_with_the_nearest_one(settings: dict[str, Any]) -> None:
    error = refusal(**settings)
    assert error.names == ("layers.2.mpl",)
    assert len(error.suggestions) == 1
    assert error.suggestions[0].startswith("layers.2.m")
    assert next(iter(settings)) in str(error)
    assert "'layers.2.mpl'" in str(error)


def test_all_unknown_names_of_one_setting_are_named_at_once() -> None:
    error = refusal(pin={"layers.9": 0, "head": 1, "emded": 0})
    assert set(error.names) == {"layers.9", "emded"}
    assert "embed" in error.suggestions


def test_a_name_like_nothing_gets_no_suggestion() -> None:
    error = refusal(pin={"something entirely different": 0})
    assert error.suggestions == ()
    assert "did you mean" not in str(error)


@pytest.mark.parametrize("settings", [{"pin": {"head": 4}}, {"forbid": {"head": (4,)}}])
def test_a_device_without_a_budget_is_named_with_those_that_have_one(settings: dict[str, Any]) -> None:
    error = refusal(**settings)
    assert error.names == ("head",)
    assert "4" in str(error)
    assert "[0, 1, 'cpu']" in str(error)


def test_what_is_no_device_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(InvalidConfigError, match="pin"):
        planner.plan(model(), max_memory={0: 200}, pin={"head": "the big one"})


# ---- Contradictions


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pin": {"layers": 0}, "forbid": {"layers.2": (0,)}}, ("pin layers = 0", "forbid layers.2 = 0")),
        ({"pin": {"layers": 0, "layers.2": 1}}, ("pin layers = 0", "pin layers.2 = 1")),
        ({"forbid": {"head": (0, 1, "cpu")}}, ("forbid head = 0, 1, cpu",)),
        ({"pin": {"embed": 0, "head": 1}, "keep_together": [["embed", "head"]]}, ("pin embed = 0", "pin head = 1")),
        ({"pin": {"layers.1.mlp": 0, "layers.1.attention": 1}}, ("pin layers.1.mlp = 0", "pin layers.1.attention = 1")),
        (
            {"forbid": {"layers": (0,), "head": (1, "cpu")}, "keep_together": [["layers.0", "head"]]},
            ("forbid layers = 0", "forbid head = 1, cpu"),
        ),
    ],
)  # fmt: skip
def test_constraints_that_contradict_each_other_are_named(
    settings: dict[str, Any], said: tuple[str, ...]
) -> None:
    error = refusal(**settings)
    assert sorted(error.names) == sorted(said)
    assert all(words in str(error) for words in said)


def test_forbids_that_leave_only_what_the_mode_excludes_are_a_contradiction() -> None:
    error = refusal(mode="gpu_only", forbid={"head": (0, 1)})
    assert "forbid head = 0, 1" in error.names


def test_ties_that_contradict_pins_are_named() -> None:
    root = model()
    root.tail = Leaf(10)
    root.tail.w = root.embed.w
    with pytest.raises(InvalidConstraintError, match="pin embed = 0; pin tail = 1"):
        planner.plan(root, max_memory={0: 100, 1: 100}, pin={"embed": 0, "tail": 1})


@pytest.mark.parametrize(("mode", "device"), [("gpu_only", "cpu"), ("gpu_only", "disk"), ("no_disk", "disk")])
def test_a_pin_that_the_mode_forbids_is_a_contradiction(mode: str, device: str) -> None:
    error = refusal(max_memory={0: 200, "cpu": 200, "disk": 200}, mode=mode, pin={"head": device})
    assert f"pin head = {device}" in error.names


@pytest.mark.parametrize("name", ["pin", "forbid", "keep_together", "no_split_modules"])
def test_strategies_without_constraints_say_so(name: str) -> None:
    value = {"pin": {"head": 0}, "forbid": {"head": (0,)}, "keep_together": [["head", "embed"]],
             "no_split_modules": ["layers"]}[name]  # fmt: skip
    error = refusal(strategy="balanced", **{name: value})
    assert error.names == (name,)
    assert "'auto'" in str(error)


def test_contradictions_are_found_before_any_search() -> None:
    error = refusal(max_memory={0: 1, 1: 1}, pin={"layers": 0, "layers.2": 1})
    assert error.names == ("pin layers = 0", "pin layers.2 = 1")


# ---- Headroom


def room_of(device: int | str, made: Plan) -> tuple[int, int]:
    found = next(row for row in made.devices if row.id == device)
    return found.headroom_bytes, found.free_bytes


def test_headroom_in_bytes_stays_free() -> None:
    made = plan(max_memory={0: 70, 1: 120}, headroom={0: 15}, strategy={"fill": "in_order"})
    assert room_of(0, made) == (15, 5)


@pytest.mark.parametrize(
    ("said", "headroom"), [("10%", 10), ("12.5%", 12), ("0%", 0), ("33%", 33), ("20B", 20)]
)
def test_headroom_is_bytes_or_a_share_of_the_budget(said: str, headroom: int) -> None:
    made = plan(max_memory={0: 100, 1: 100}, headroom={0: said})
    assert room_of(0, made)[0] == headroom
    assert room_of(1, made)[0] == 0


def test_a_share_is_rounded_down_to_whole_bytes() -> None:
    budget = 85_899_345_927
    made = plan(max_memory={0: budget}, headroom={0: "10%"})
    assert room_of(0, made)[0] == 8_589_934_592


def test_headroom_makes_what_just_fitted_infeasible() -> None:
    assert plan(max_memory={0: 120}).device_map == {"": 0}
    with pytest.raises(InfeasibleError) as caught:
        planner.plan(model(), max_memory={0: 120}, headroom={0: 1})
    assert caught.value.more_bytes == {0: 1}


def test_headroom_beyond_the_budget_leaves_nothing_and_says_what_is_missing() -> None:
    with pytest.raises(InfeasibleError) as caught:
        planner.plan(model(), max_memory={0: 200}, headroom={0: 500})
    assert caught.value.more_bytes == {0: 420}


def test_nothing_of_a_budget_that_was_said_is_kept_back() -> None:
    assert {device.headroom_bytes for device in plan().devices} == {0}


def test_headroom_of_a_device_without_a_budget_is_refused() -> None:
    with pytest.raises(InvalidDevicesError) as caught:
        planner.plan(model(), max_memory={0: 200}, headroom={1: 5})
    assert caught.value.device == 1


@pytest.mark.parametrize("said", ["101%", "-1%", "much", -5, -1.5, "%", "1e1%"])
def test_headroom_that_is_no_size_is_a_mistake_of_the_configuration(said: object) -> None:
    with pytest.raises(InvalidConfigError, match="headroom"):
        planner.plan(model(), max_memory={0: 200}, headroom={0: said})
