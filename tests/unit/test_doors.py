"""Every door reads sizes, devices and device maps in one way, and refuses what is none with a typed error."""

from __future__ import annotations

import decimal
import fractions
import json
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import planner
import planner.compat.transformers
from planner.cli.files import BudgetRow, read_budget_rows
from planner.devices.keys import canonical_device, read_budget, size_to_bytes
from planner.errors import (
    InfeasibleError,
    InvalidConfigError,
    InvalidConstraintError,
    InvalidDevicesError,
    InvalidInputError,
    PlannerError,
)
from planner.settings.schema import read_bytes, read_device
from planner.spelling import count_of, shown


def model() -> nn.Module:
    """Four layers of 400 bytes."""
    return nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(4)))


class Nothing:
    """No size, no device, no map; its text does not tell where it lies, so that every process names a test alike."""

    def __repr__(self) -> str:
        return "Nothing()"


def refuses(call: Callable[[], object]) -> PlannerError | None:
    """The typed error; anything else that is raised fails the test."""
    try:
        call()
    except PlannerError as error:
        return error
    return None


# ---- Sizes

SIZES = [
    (800, 800), (800.9, 800), (np.int64(800), 800), (np.uint8(200), 200), (np.float32(800.5), 800), (np.float64(800.5), 800),
    (torch.tensor(800), 800), (torch.tensor(800.5), 800), (np.array(800), 800), (decimal.Decimal("800.9"), 800),
    (fractions.Fraction(1601, 2), 800), ("800", 800), ("1KB", 1000), (0, 0), (0.0, 0), (-0.0, 0), (1e300, int(1e300)),
]  # fmt: skip
NO_SIZES = [
    -1, -0.5, math.nan, math.inf, -math.inf, True, np.True_, torch.tensor(True), None, b"8", "x", "-1", "", [1], 10**400,
    np.complex128(1), np.timedelta64(5), np.array([5, 6]), torch.empty(1, device="meta"), Nothing(), 1j, "9" * 100_000,
    decimal.Decimal("NaN"), decimal.Decimal("1e400"), 10**5000, -(10**5000),
]  # fmt: skip

PLANNED: dict[str, Callable[[Any], object]] = {
    "max_memory": lambda size: planner.plan(model(), max_memory={0: size, "cpu": 10_000}),
    "plan_many": lambda size: planner.plan_many(model(), [{0: size, "cpu": 10_000}]),
    "headroom": lambda size: planner.plan(model(), max_memory={0: 1000, "cpu": 10_000}, headroom={0: size}),
    "infer": lambda size: planner.infer_auto_device_map(model(), {0: size, "cpu": 10_000}),
    "balanced": lambda size: planner.get_balanced_memory(model(), {0: size, "cpu": 10_000}),
    "check": lambda size: planner.check(model(), {"": "cpu"}, {0: size, "cpu": 10_000}),
    "transformers": lambda size: planner.compat.transformers.get_max_memory({0: size}),
    "convert": planner.convert_file_size_to_int,
}


@pytest.mark.parametrize(("said", "meant"), SIZES, ids=lambda value: shown(value))
def test_a_size_is_the_same_to_every_reader(said: Any, meant: int) -> None:
    assert read_bytes(said) == size_to_bytes(said) == int(read_budget(said, 0)) == meant
    assert type(read_bytes(said)) is int


@pytest.mark.parametrize("door", PLANNED)
@pytest.mark.parametrize("said", [said for said, meant in SIZES if meant < 10_000], ids=shown)
def test_a_size_is_taken_at_every_door(door: str, said: Any) -> None:
    assert refuses(lambda: PLANNED[door](said)) is None


@pytest.mark.parametrize("door", PLANNED)
@pytest.mark.parametrize("said", NO_SIZES, ids=shown)
def test_what_is_no_size_is_a_typed_error_at_every_door(door: str, said: Any) -> None:
    error = refuses(lambda: PLANNED[door](said))
    assert isinstance(error, InvalidInputError)
    assert len(str(error)) < 1000


def test_settings_keep_plain_ints() -> None:
    plan = planner.plan(model(), max_memory={torch.device("cuda:0"): np.float32(800.5), "cpu": 1e4})
    assert plan.settings["max_memory.0"].value == 800
    assert type(plan.settings["max_memory.0"].value) is int
    json.loads(plan.to_json())
    assert plan == planner.plan(model(), max_memory={0: 800, "cpu": 10_000})


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.integers(-5, 5000),
        st.floats(-10, 1e15),
        st.sampled_from([math.nan, math.inf]),
        st.text(max_size=4),
        st.none(),
        st.booleans(),
    )
)
def test_drawn_sizes_are_taken_by_all_doors_or_by_none(said: Any) -> None:
    if isinstance(said, str):
        said = said.replace("b", "")  # accelerate reads "Gb" as bits, which settings refuse
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verdicts = {
            name: refuses(lambda call=call: call(said)) is None
            for name, call in PLANNED.items()
            if name != "headroom"
        }
    assert len(set(verdicts.values())) == 1, verdicts


@given(st.decimals(0, 100, places=6))
def test_a_share_keeps_all_its_digits(share: decimal.Decimal) -> None:
    from planner.config import Stack
    from planner.settings.schema import Settings

    kept = Stack(Settings).set(headroom={0: f"{share}%"}).resolve().config.headroom
    assert kept is not None
    assert decimal.Decimal(str(kept[0])[:-1]) == share


# ---- Devices

DEVICES = [
    (0, 0), ("0", 0), ("cuda", 0), ("cuda:0", 0), (torch.device("cuda:0"), 0), (torch.device("cuda"), 0), (np.int64(0), 0),
    (torch.tensor(0), 0), ("xpu:0", 0), (torch.device("xpu", 0), 0), ("007", 7), ("npu:3", 3), (np.uint8(3), 3), ("cpu", "cpu"),
    ("cpu:0", "cpu"), (torch.device("cpu"), "cpu"), ("disk", "disk"), ("mps", "mps"), (torch.device("mps:0"), "mps"),
]  # fmt: skip
NO_DEVICES = [
    -1, True, np.True_, torch.tensor(True), 1.5, None, "", " 0", "CPU", "cpu:1", "cuda:", "cuda:x", "cuda:٣", "٣", "-1", "0x1", "meta",
    torch.device("meta"), 10**12, 10**5000, "9" * 20, Nothing(), b"cpu", torch.tensor(0.5),
]  # fmt: skip

ADDRESSED: dict[str, Callable[[Any], object]] = {
    "max_memory": lambda device: planner.plan(model(), max_memory={device: 10_000}),
    "plan_many": lambda device: planner.plan_many(model(), [{device: 10_000}]),
    "pin": lambda device: planner.plan(model(), max_memory={device: 10_000}, pin={"0": device}),
    "forbid": lambda device: planner.plan(
        model(), max_memory={device: 10_000, "5": 10_000}, forbid={"0": [device]}
    ),
    "headroom": lambda device: planner.plan(model(), max_memory={device: 10_000}, headroom={device: 1}),
    "infer": lambda device: planner.infer_auto_device_map(model(), {device: 10_000}),
    "check": lambda device: planner.check(model(), {"": 0}, {device: 10_000}),
}


@pytest.mark.parametrize("door", ADDRESSED)
@pytest.mark.parametrize(("said", "meant"), DEVICES, ids=lambda value: shown(value))
def test_a_device_is_taken_at_every_door(door: str, said: Any, meant: int | str) -> None:
    logging.disable(logging.CRITICAL)
    error = refuses(lambda: ADDRESSED[door](said))
    logging.disable(logging.NOTSET)
    # Nothing runs on disk alone; that is another refusal.
    assert error is None or (meant == "disk" and isinstance(error, InfeasibleError))
    assert read_device(said) == canonical_device(said) == meant


@pytest.mark.parametrize("door", ADDRESSED)
@pytest.mark.parametrize("said", NO_DEVICES, ids=shown)
def test_what_is_no_device_is_a_typed_error_at_every_door(door: str, said: Any) -> None:
    error = refuses(lambda: ADDRESSED[door](said))
    assert isinstance(error, InvalidInputError)
    assert len(str(error)) < 1000


@pytest.mark.parametrize(("said", "meant"), DEVICES, ids=lambda value: shown(value))
def test_the_checker_means_the_same_device(said: Any, meant: int | str) -> None:
    assert {finding.rule for finding in planner.check(model(), {"": said}, {meant: 10})} == {"over-budget"}


@pytest.mark.parametrize("said", NO_DEVICES, ids=shown)
def test_the_checker_finds_what_is_no_device(said: Any) -> None:
    assert "unknown-device" in {finding.rule for finding in planner.check(model(), {"": said})}


@pytest.mark.parametrize("one", [{0: 1, "cuda:0": 1}, {"xpu:1": 1, 1: 1}, {"cpu": 1, torch.device("cpu"): 1}])
def test_one_device_under_two_spellings_is_refused_everywhere(one: dict[Any, int]) -> None:
    calls: list[Callable[[], object]] = [
        lambda: planner.plan(model(), max_memory=one),
        lambda: planner.plan_many(model(), [{0: 5000}, one]),
        lambda: planner.infer_auto_device_map(model(), one),
        lambda: planner.check(model(), {"": 0}, one),
        lambda: planner.plan(model(), max_memory={0: 5000, 1: 5000, "cpu": 5000}, headroom=one),
    ]
    assert all(isinstance(refuses(call), InvalidInputError) for call in calls)


def test_none_is_all_that_there_is_at_every_door() -> None:
    for made in (planner.plan(model(), max_memory=None), *planner.plan_many(model(), [None])):
        assert {device.origin.partition(":")[0] for device in made.devices} == {"detected"}
    assert planner.plan(model(), config={"max_memory": {0: 5000}}, max_memory=None).devices[0].id != 0
    assert planner.infer_auto_device_map(model(), None)
    assert planner.check(model(), {"": 0}, None) == ()


def test_rows_of_a_file_are_read_as_settings_are(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"cuda:0": "800.5B", "cpu": "1KB"}\n{"xpu:1": 8e9}\n')
    assert read_budget_rows(str(file)) == [
        BudgetRow(None, {0: 800, "cpu": 1000}),
        BudgetRow(None, {1: 8 * 10**9}),
    ]
    for line in (
        '{"0": 1, "cuda:0": 2}',
        '{"0": NaN}',
        '{"0": 1e400}',
        '{"0": -1}',
        '{"0": null}',
        "[]",
        "{}",
        "5",
    ):
        file.write_text(line)
        assert isinstance(refuses(lambda: read_budget_rows(str(file))), InvalidInputError)


@pytest.mark.parametrize("rows", [{0: 5000}, "cpu", 5, None, [5], ["cpu"], [{0: 5000}, 5]], ids=shown)
def test_rows_that_are_no_budgets_are_refused(rows: Any) -> None:
    assert isinstance(refuses(lambda: planner.plan_many(model(), rows)), InvalidInputError)


def test_counting_knows_no_bool_and_no_text() -> None:
    assert [count_of(value) for value in (True, np.False_, "1", b"1", bytearray(b"1"))] == [None] * 5


# ---- An accelerator, or an error

ROOMS: list[tuple[dict[Any, int], dict[Any, Any]]] = [
    ({0: 0}, {}), ({0: 10}, {}), ({0: 5000}, {0: 5000}), ({0: 5000}, {"all": "100%"}), ({0: 5000}, {0: 9000}), ({0: 0, 1: 0}, {}),
    ({"mps": 0}, {}), ({0: 0, "mps": 0}, {}),
]  # fmt: skip


@pytest.mark.parametrize("strategy", ["auto", "sequential", "balanced", "balanced_low_0"])
@pytest.mark.parametrize("tiers", [("cpu",), ("cpu", "disk"), ("disk",)])
@pytest.mark.parametrize(("cards", "headroom"), ROOMS)
def test_full_accelerators_are_no_reason_to_offload(
    strategy: str, tiers: tuple[str, ...], cards: dict[Any, int], headroom: dict[Any, Any]
) -> None:
    said: dict[str, Any] = {"headroom": headroom, "mode": "gpu_only", "strategy": strategy}
    budgets = {**cards, **dict.fromkeys(tiers, 100_000)}
    with pytest.raises(InfeasibleError):
        planner.plan(model(), max_memory=budgets, **said)
    assert isinstance(planner.plan_many(model(), [budgets], **said)[0], InfeasibleError)


@pytest.mark.parametrize("cards", [{0: 0}, {0: 10}, {0: 5000}])
def test_a_pin_to_the_cpu_beside_an_accelerator_contradicts_the_mode_full_or_not(
    cards: dict[Any, int],
) -> None:
    with pytest.raises(InvalidConstraintError, match="gpu_only"):
        planner.plan(model(), max_memory={**cards, "cpu": 5000}, mode="gpu_only", pin={"0": "cpu"})


@pytest.mark.parametrize("strategy", ["auto", "sequential", "balanced"])
def test_without_any_accelerator_the_cpu_takes_its_place(strategy: str) -> None:
    plan = planner.plan(model(), max_memory={"cpu": 5000}, mode="gpu_only", strategy=strategy)
    assert set(plan.device_map.values()) == {"cpu"}
    assert sum(plan.offloaded_bytes.values()) == 0
    assert planner.plan(model(), max_memory={"cpu": 5000}, mode="gpu_only", pin={"0": "cpu"})


def test_a_full_accelerator_is_told_what_would_be_enough() -> None:
    with pytest.raises(InfeasibleError) as caught:
        planner.plan(model(), max_memory={0: 1000, "cpu": 5000}, headroom={0: 1200}, mode="gpu_only")
    assert caught.value.more_bytes == {0: 1800}
    assert (
        planner.plan(model(), max_memory={0: 2800}, headroom={0: 1200}, mode="gpu_only").offloaded_bytes[
            "cpu"
        ]
        == 0
    )


# ---- Device maps

NO_MAPS = ["auto", "", b"x", None, 0, 1.5, True, [], ["cpu"], [("", 0)], (), {0}, Nothing(), range(3)]
MAPPED: dict[str, Callable[[Any], object]] = {
    "dispatch": lambda word: planner.dispatch(model(), word),
    "dispatch_model": lambda word: planner.dispatch_model(model(), word),
    "check": lambda word: planner.check(model(), word),
    "check_device_map": lambda word: planner.check_device_map(model(), word),
    "clean_device_map": planner.clean_device_map,
    "clean_device_map below": lambda word: planner.clean_device_map(word, "0"),
    "check_tied": lambda word: planner.check_tied_parameters_on_same_device([["0.weight", "1.weight"]], word),
}


@pytest.mark.parametrize("door", MAPPED)
@pytest.mark.parametrize("word", NO_MAPS, ids=shown)
def test_what_is_no_device_map_is_refused_in_a_sentence(door: str, word: Any) -> None:
    error = refuses(lambda: MAPPED[door](word))
    assert isinstance(error, InvalidInputError)
    assert "map" in str(error) and len(str(error)) < 220


@pytest.mark.parametrize("word", NO_MAPS, ids=shown)
def test_other_maps_and_settings_that_are_none_are_refused(word: Any) -> None:
    room = {"cpu": 10_000}
    calls: list[Callable[[], object]] = [
        lambda: planner.dispatch(model(), {"": "cpu"}, execution_map=word),
        lambda: planner.dispatch(model(), {"": "cpu"}, staging_bytes=word),
        lambda: planner.plan(model(), max_memory=word),
        lambda: planner.plan(model(), max_memory=room, config=word),
        lambda: planner.infer_auto_device_map(model(), word),
        lambda: planner.get_balanced_memory(model(), word),
        lambda: planner.check(model(), {"": 0}, word),
    ]
    if type(word) not in (int, float):  # one number is the headroom of all
        calls.append(lambda: planner.plan(model(), max_memory=room, headroom=word))
    for call in calls if word is not None else []:
        assert isinstance(refuses(call), InvalidInputError)
    for name in ("pin", "forbid", "special_dtypes"):
        assert isinstance(
            refuses(lambda name=name: planner.plan(model(), max_memory=room, **{name: word})),
            InvalidConfigError,
        )


@pytest.mark.parametrize("door", ["dispatch", "dispatch_model"])
@pytest.mark.parametrize("key", [1, None, b"0", ("0",), 1.5, "\udc80"], ids=shown)
def test_keys_that_are_no_names_are_refused(door: str, key: Any) -> None:
    assert isinstance(refuses(lambda: MAPPED[door]({key: "cpu"})), InvalidConstraintError)
    assert isinstance(refuses(lambda: planner.clean_device_map({key: "cpu"})), InvalidConstraintError)
    assert "unknown-key" in {finding.rule for finding in planner.check(model(), {key: "cpu"})}


@pytest.mark.parametrize("device", [*NO_DEVICES, [0], {}], ids=shown)
def test_devices_that_are_none_are_refused_before_anything_is_done(device: Any) -> None:
    net = model()
    before = dict(net.__dict__), [module.__dict__.keys() for module in net.modules()]
    for call in (planner.dispatch, planner.dispatch_model):
        assert isinstance(refuses(lambda call=call: call(net, {"": device})), InvalidInputError)
    assert (dict(net.__dict__), [module.__dict__.keys() for module in net.modules()]) == before


@pytest.mark.parametrize(
    "name",
    ["pin", "forbid", "special_dtypes", "no_split_modules", "keep_together", "no_split_module_classes"],
)
def test_a_name_that_is_no_text_is_told_with_its_setting(name: str) -> None:
    bad = "0\udc80"
    words = {
        "pin": {bad: "cpu"},
        "forbid": {bad: ["cpu"]},
        "special_dtypes": {bad: "int8"},
        "keep_together": [[bad]],
    }
    with pytest.raises(InvalidConfigError, match=f"{name}.*expected a name"):
        planner.plan(model(), max_memory={"cpu": 5000}, **{name: words.get(name, [bad])})


def test_nothing_can_run_on_disk() -> None:
    for call in (
        lambda: planner.dispatch_model(model(), {"": "cpu"}, main_device="disk"),
        lambda: planner.dispatch(model(), {"": "cpu"}, execution_map={"0": "disk"}),
        lambda: planner.dispatch(model(), {"": "cpu"}, staging_bytes={"disk": 5}),
    ):
        error = refuses(call)
        assert isinstance(error, InvalidInputError) and "disk" in str(error)


@pytest.mark.parametrize("size", [said for said in NO_SIZES if said is not None], ids=shown)
def test_room_for_staging_is_a_size(size: Any) -> None:
    assert isinstance(
        refuses(lambda: planner.dispatch(model(), {"": "cpu"}, staging_bytes={"cpu": size})),
        InvalidInputError,
    )


# ---- One module on two devices


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)


@pytest.mark.parametrize(
    ("split", "rest"),
    [
        ({"fc.weight": 0, "fc.bias": 1}, {"norm": 0}),
        ({"norm.weight": 0, "norm.bias": 0, "norm.running_mean": 1}, {"fc": 0}),
        ({"fc.weight": "cpu", "fc.bias": 1}, {"norm": 0}),
    ],
)
def test_half_a_module_on_each_device_is_found_by_the_checker(
    split: dict[str, Any], rest: dict[str, Any]
) -> None:
    findings = planner.check(Half(), {**split, **rest})
    found = [finding for finding in findings if finding.rule == "split-module"]
    assert [finding.name for finding in found] == [next(iter(split)).rpartition(".")[0]]
    assert not planner.is_valid(findings)


@pytest.mark.parametrize(
    "split",
    [
        {"fc.weight": 0, "fc.bias": 0, "norm": 1},
        {"fc.weight": 0, "fc.bias": "cpu", "norm": 0},
        {"fc.weight": "cpu", "fc.bias": "disk", "norm": 0},
        {"fc": 0, "fc.bias": 1, "norm": 0},
    ],
)
def test_a_module_that_runs_on_one_device_is_not_split(split: dict[str, Any]) -> None:
    assert "split-module" not in {finding.rule for finding in planner.check(Half(), split)}


# ---- What is no model, no device, no names


NO_MODELS = [None, 5, "zzz", [1], {"a": 1}, nn.Linear, torch.ones(2), Nothing()]
TAKES_A_MODEL: list[Callable[[Any], Any]] = [
    lambda it: planner.check(it, {"": "cpu"}),
    lambda it: planner.verify(it, {"": "cpu"}, torch.ones(1)),
    planner.crossings,
    planner.undispatch,
    planner.state_dict,
    lambda it: planner.cpu_offload(it, "cpu"),
    lambda it: planner.disk_offload(it, "nowhere", "cpu"),
    lambda it: planner.cpu_offload_with_hook(it, "cpu"),
    lambda it: planner.attach_align_device_hook(it, "cpu", offload=True),
    lambda it: planner.attach_layerwise_casting_hooks(it, torch.float16, torch.float32),
    lambda it: planner.add_hook_to_module(it, planner.ModelHook()),
    planner.remove_hook_from_module,
    planner.remove_hook_from_submodules,
    lambda it: list(planner.named_module_tensors(it)),
    lambda it: planner.align_module_device(it, "cpu").__enter__(),
    planner.get_non_persistent_buffers,
    planner.get_state_dict_offloaded_model,
]


@pytest.mark.parametrize("it", NO_MODELS, ids=shown)
def test_what_is_no_model_is_refused(it: Any) -> None:
    for call in TAKES_A_MODEL:
        assert isinstance(refuses(lambda call=call: call(it)), InvalidInputError)  # type: ignore[misc]


NO_TORCH_DEVICES = [-1, 10**30, 1.5, "zzz", "", [1], {"a": 1}, Nothing(), "\ud800"]


@pytest.mark.parametrize("device", NO_TORCH_DEVICES, ids=shown)
def test_what_is_no_device_of_torch_is_refused(device: Any) -> None:
    for call in (
        lambda: planner.cpu_offload(model(), device),
        lambda: planner.cpu_offload_with_hook(model(), device),
        lambda: planner.send_to_device(torch.ones(1), device),
        lambda: planner.set_module_tensor_to_device(model(), "0.weight", device),
        lambda: planner.AlignDevicesHook(device),
    ):
        assert isinstance(refuses(call), InvalidDevicesError)


NO_NAMES: list[Any] = [5, 1.5, [1], [["a"]], {5: 0}, torch.ones(2), torch.tensor(1), Nothing()]


@pytest.mark.parametrize("names", NO_NAMES, ids=shown)
def test_what_are_no_names_is_refused(names: Any) -> None:
    for call in (
        lambda: planner.check(model(), {"": "cpu"}, no_split_module_classes=names),
        lambda: planner.check(model(), {"": "cpu"}, exempt=names),
        lambda: planner.dispatch(model(), {"": "cpu"}, skip_keys=names),
        lambda: planner.dispatch_model(model(), {"": "cpu"}, skip_keys=names),
        lambda: planner.dispatch_model(model(), {"": "cpu"}, preload_module_classes=names),
        lambda: planner.cpu_offload(model(), "cpu", preload_module_classes=names),
        lambda: planner.AlignDevicesHook("cpu", skip_keys=names),
        lambda: planner.infer_auto_device_map(model(), {"cpu": 5000}, names),
    ):
        assert isinstance(refuses(call), InvalidInputError)


def test_half_of_a_character_is_no_class() -> None:
    for call in (
        lambda: planner.infer_auto_device_map(model(), {"cpu": 5000}, ["\ud800"]),
        lambda: planner.get_balanced_memory(model(), {0: 5000}, ["\ud800"]),
    ):
        assert isinstance(refuses(call), InvalidInputError)


@pytest.mark.parametrize("dtypes", [5, "zzz", [1], torch.ones(2), {5: torch.float16}, Nothing()], ids=shown)
def test_element_types_are_said_by_name(dtypes: Any) -> None:
    for call in (
        lambda: planner.infer_auto_device_map(model(), {"cpu": 5000}, special_dtypes=dtypes),
        lambda: planner.compute_module_sizes(model(), special_dtypes=dtypes),
    ):
        assert isinstance(refuses(call), InvalidInputError)
    if not isinstance(dtypes, dict):
        refuses(lambda: planner.check(model(), {"": "cpu"}, special_dtypes=dtypes))


def test_what_is_no_path_and_no_weights_is_refused() -> None:
    for call in (
        lambda: planner.plan(model(), checkpoint=5),  # type: ignore[arg-type]
        lambda: planner.disk_offload(model(), None, "cpu"),  # type: ignore[arg-type]
        lambda: planner.cpu_offload(model(), "cpu", state_dict=5),  # type: ignore[arg-type]
    ):
        assert isinstance(refuses(call), InvalidInputError)


def test_the_checker_and_the_flags_take_what_accelerate_takes() -> None:
    assert planner.check(model(), {"": "cpu"}, no_split_module_classes=None, exempt=None) == ()
    flags: dict[str, Any] = {"clean_result": 1, "fallback_allocation": 0}
    assert dict(planner.infer_auto_device_map(model(), {"cpu": 5000}, **flags)) == {"": "cpu"}
    assert planner.compute_module_sizes(model(), buffers_only=np.bool_(True))[""] == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a\0b.yaml", "\ud800.json", "\0.toml"])
def test_a_file_that_cannot_have_its_name_is_a_problem_of_the_configuration(name: str) -> None:
    error = refuses(lambda: planner.plan(model(), max_memory={"cpu": 5000}, config=name))
    assert isinstance(error, InvalidConfigError) and "cannot be read" in str(error)


def test_what_is_absurd_is_refused_without_being_spelled_out() -> None:
    """Python writes no int of so many digits, and numpy and torch iterate over no single number."""
    plan = planner.plan(model(), max_memory={0: 800, "cpu": 2000})
    for call in (
        lambda: planner.explain(plan, 10**5000),
        lambda: planner.explain(plan, [10**5000]),
        lambda: planner.explain(plan, "x" * 10_000),
        lambda: planner.infer_auto_device_map(model(), max_memory={0: 800}, dtype=10**5000),
        lambda: planner.plan_many(model(), np.array(5)),
        lambda: planner.plan_many(model(), torch.tensor(5)),
    ):
        error = refuses(call)
        assert error is not None and len(str(error)) < 500
