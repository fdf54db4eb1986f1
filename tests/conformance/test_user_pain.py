"""What users have suffered from, row by row: the table of reproduced bugs of accelerate 1.15 and transformers 5.23.

Where accelerate's map is valid it is kept, even if a better one exists; everywhere else ours is right. Each row says what
upstream does, so that a new version of upstream is noticed.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import accelerate.utils.modeling as accelerate
import pytest
import torch
import transformers.integrations.accelerate as transformers
from conformance_trees import Blk, Leaf, buffer, parameter, root, tie
from torch import nn

import planner
from oracle.judge import faults_in
from planner.compat import transformers as ours_for_transformers

CPU = {"cpu": 100_000}
pytestmark = pytest.mark.filterwarnings("ignore:Current model requires")


def plan(model: nn.Module, budgets: dict[Any, Any], **options: Any) -> dict[str, Any]:
    """Ours, found valid by the independent judge."""
    device_map = planner.infer_auto_device_map(model, budgets, **options)
    assert faults_in(model, device_map, budgets, **_checked(options)) is None
    return dict(device_map)


def plan_like_transformers(model: nn.Module, budgets: dict[Any, Any], **options: Any) -> dict[str, Any]:
    device_map = ours_for_transformers.infer_auto_device_map(model, budgets, **options)
    assert faults_in(model, device_map, budgets, **_checked(options)) is None
    return dict(device_map)


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if "split" in name or "dtype" in name}


def same_as_accelerate(model: nn.Module, budgets: dict[Any, Any], **options: Any) -> dict[str, Any]:
    """Ours, which is accelerate's, key for key and in order."""
    theirs = accelerate.infer_auto_device_map(model, dict(budgets), **options)
    ours = planner.infer_auto_device_map(model, budgets, **options)
    assert list(ours.items()) == list(theirs.items())
    return dict(ours)


def raised(
    error: type[Exception], plan: Any, model: nn.Module, budgets: dict[Any, Any], **options: Any
) -> None:
    with pytest.raises(error):
        plan(model, dict(budgets), **options)


BOTH_UPSTREAM = (accelerate.infer_auto_device_map, transformers.infer_auto_device_map)


# B1: direct buffers of a module that is split


def buffered() -> nn.Module:
    model = root(a=Blk(400, 400, 400), b=Blk(400, 400, 400))
    for block in (model.a, model.b):
        block.register_buffer("scale", buffer(40))
    return model


def test_b1_a_split_module_keeps_its_direct_buffers() -> None:
    for upstream in BOTH_UPSTREAM:
        assert "b.scale" not in upstream(buffered(), {0: 2100, **CPU})
    expected = {"a": 0, "b.l0": 0, "b.l1": "cpu", "b.l2": "cpu", "b.scale": "cpu"}
    assert plan(buffered(), {0: 2100, **CPU}) == expected
    assert plan_like_transformers(buffered(), {0: 2100, **CPU}) == expected


def test_b1b_cleaned_is_accelerates_and_uncleaned_covers_as_much() -> None:
    assert same_as_accelerate(buffered(), {0: 1700, **CPU}) == {"a": 0, "b": "cpu"}
    uncleaned = plan(buffered(), {0: 1700, **CPU}, clean_result=False)
    assert uncleaned == {"a": 0, "b.l0": "cpu", "b.l1": "cpu", "b.l2": "cpu", "b.scale": "cpu"}
    assert plan_like_transformers(buffered(), {0: 1700, **CPU}) == {"a": 0, "b": "cpu"}


# B2 to B5: ties


def head_with_a_direct_tie() -> nn.Module:
    model = root(emb=Leaf(400), head=Blk(400, 400))
    model.head.w = parameter(400)
    return tie(model, head__w="emb.w")


def test_b2_a_tied_direct_parameter_of_a_split_module() -> None:
    for upstream in BOTH_UPSTREAM:
        raised(IndexError, upstream, head_with_a_direct_tie(), {0: 1000, **CPU})
    for placed in (
        plan(head_with_a_direct_tie(), {0: 1000, **CPU}),
        plan_like_transformers(head_with_a_direct_tie(), {0: 1000, **CPU}),
    ):
        assert placed["emb"] == placed["head.w"] == 0
        assert {"head.l0", "head.l1"} <= set(placed)


def test_b3_a_root_parameter_tied_to_a_module() -> None:
    def model() -> nn.Module:
        model = root(head=Leaf(400))
        model.w = parameter(400)
        return tie(model, head__w="w")

    for upstream in BOTH_UPSTREAM:
        raised(IndexError, upstream, model(), {0: 10_000, **CPU})
    assert plan(model(), {0: 10_000, **CPU}) == {"": 0}
    assert plan_like_transformers(model(), {0: 10_000, **CPU}) == {"": 0}


def test_b4_a_name_that_is_part_of_another_is_not_inside_it() -> None:
    def model() -> nn.Module:
        return tie(root(enc=Blk(400, 400), dec=Blk(400, 400), l1=Leaf(400)), dec__l0__w="enc.l1.w")

    for upstream in BOTH_UPSTREAM:
        raised(IndexError, upstream, model(), {0: 10_000, **CPU})
    assert plan(model(), {0: 10_000, **CPU}) == {"": 0}
    assert plan_like_transformers(model(), {0: 10_000, **CPU}) == {"": 0}


def test_b4b_a_head_beside_a_decoders_head() -> None:
    def model() -> nn.Module:
        model = root(embed=Leaf(400), head=Leaf(400), decoder=nn.Module())
        model.decoder.head = Leaf(400)
        return tie(model, decoder__head__w="embed.w")

    for upstream in BOTH_UPSTREAM:
        raised(IndexError, upstream, model(), {0: 10_000, **CPU})
    assert plan(model(), {0: 10_000, **CPU}) == {"": 0}
    assert plan_like_transformers(model(), {0: 10_000, **CPU}) == {"": 0}


def test_b5_one_module_under_two_names() -> None:
    def model() -> nn.Module:
        shared = Leaf(400)
        return root(a=shared, b=Leaf(400), c=shared, d=Leaf(400))

    raised(IndexError, accelerate.infer_auto_device_map, model(), {0: 10_000, **CPU})
    assert "c" not in transformers.infer_auto_device_map(model(), {0: 900, **CPU})
    assert plan(model(), {0: 10_000, **CPU}) == {"": 0}
    placed = plan_like_transformers(model(), {0: 900, **CPU})
    assert placed["a"] == placed["c"]


# B6: the fallback


def test_b6_the_fallback_with_a_tie_to_what_it_skipped() -> None:
    def model() -> nn.Module:
        tied = root(embed=Leaf(700), lm_head=Leaf(700), layers=Blk(50, 50), big=Leaf(900))
        return tie(tied, lm_head__w="embed.w")

    budgets = {0: 1000, **CPU}
    raised(IndexError, accelerate.infer_auto_device_map, model(), budgets, fallback_allocation=True)
    assert set(same_as_accelerate(model(), budgets).values()) == {"cpu"}
    placed = plan(model(), budgets, fallback_allocation=True)
    assert placed == {"layers": 0, "embed": "cpu", "lm_head": "cpu", "big": "cpu"}


@pytest.mark.parametrize("card", [4, 5])
def test_the_fallback_takes_no_buffer_out_of_a_module(card: int) -> None:
    model = root(a=root(b=Leaf(3), c=Leaf(3)))
    model.a.register_buffer("scale", buffer(1))
    assert same_as_accelerate(model, {0: card, **CPU}, fallback_allocation=True) == {"": "cpu"}


def test_b6b_a_layer_larger_than_every_card_still_keeps_all_on_the_cpu() -> None:
    model = root(big=Leaf(700), layers=Blk(100, 100), tail=Blk(50, 50, 50))
    budgets = {0: 600, 1: 600, **CPU}
    assert same_as_accelerate(model, budgets, fallback_allocation=True) == {"": "cpu"}


# B7 and B8: sizes of tied modules


def test_b7_a_partner_tied_twice_is_counted_twice_by_accelerate_and_once_by_transformers() -> None:
    model = root(emb=Leaf(400), head=Leaf(400))
    model.emb.v = parameter(400)
    model.head.v = parameter(400)
    model.head.x = parameter(400)
    tie(model, head__w="emb.w", head__v="emb.v")
    for budget in (1600, 1700, 1900):
        assert same_as_accelerate(model, {0: budget, **CPU}) == {"": "cpu"}
        assert plan_like_transformers(model, {0: budget, **CPU}) == {"": 0}


def test_b8_a_table_of_ties_whose_key_is_met_first_does_not_make_the_tensor_free() -> None:
    def model() -> nn.Module:
        model = root(first=Leaf(4000), second=Leaf(4000))
        model.second.extra = parameter(40)
        model.second.w = model.first.w
        model.all_tied_weights_keys = {"first.w": "second.w"}  # type: ignore[assignment]
        return model

    assert transformers.infer_auto_device_map(model(), {0: 2000, **CPU}) == {"": 0}, "4040 bytes on 2000"
    assert plan_like_transformers(model(), {0: 2000, **CPU}) == {"": "cpu"}
    assert plan(model(), {0: 2000, **CPU}) == {"": "cpu"}


# B9: valid, though not the best: kept


def four() -> nn.Module:
    return root(a=Leaf(400), b=Leaf(400), c=Leaf(400), d=Leaf(400))


@pytest.mark.parametrize(
    ("model", "budgets", "expected"),
    [
        pytest.param(four, {0: 900, 1: 900}, {"a": 0, "b": 1, "c": 1, "d": "cpu"}, id="B9"),
        pytest.param(four, {0: 0, 1: 1200}, {"a": 1, "b": 1, "c": 1, "d": "cpu"}, id="B9b-zero-listed"),
        pytest.param(four, {1: 1200}, {"a": 1, "b": 1, "c": "cpu", "d": "cpu"}, id="B9b-zero-not-listed"),
        pytest.param(
            lambda: root(big=Leaf(1000), **{f"l{index}": Leaf(100) for index in range(8)}),
            {0: 900, 1: 900},
            {"": "cpu"},
            id="B9c",
        ),
    ],
)
def test_b9_valid_maps_stay_as_they_are(
    model: Any, budgets: dict[Any, int], expected: dict[str, Any]
) -> None:
    assert same_as_accelerate(model(), {**budgets, **CPU}) == expected
    assert plan_like_transformers(model(), {**budgets, **CPU}) == dict(
        transformers.infer_auto_device_map(model(), {**budgets, **CPU})
    )


@pytest.mark.parametrize(
    ("low_zero", "budgets", "on_cpu"),
    [
        pytest.param(False, {0: 1000, 1: 4000, 2: 500}, 1200, id="B9d"),
        pytest.param(True, {0: 2000, 1: 2000}, 400, id="B9e"),
    ],
)
def test_b9de_balanced_budgets_stay_as_they_are(low_zero: bool, budgets: dict[Any, int], on_cpu: int) -> None:
    model = root(**{f"l{index}": Leaf(400) for index in range(8)})
    theirs = accelerate.get_balanced_memory(model, {**budgets, **CPU}, low_zero=low_zero)
    ours = planner.get_balanced_memory(model, {**budgets, **CPU}, low_zero=low_zero)
    assert list(ours.items()) == list(theirs.items())
    placed = same_as_accelerate(model, ours)
    assert 400 * list(placed.values()).count("cpu") == on_cpu


@pytest.mark.parametrize(
    ("budgets", "zero"),
    [({0: 5000, 2: 5000}, 0), ({1: 5000, 2: 5000}, 1), ({0: 2000, 1: 0, 2: 2000, 3: 2000}, 0)],
)
def test_b9f_low_zero_works_for_any_ids_and_empties_the_first(budgets: dict[Any, int], zero: int) -> None:
    model = root(**{f"l{index}": Leaf(400) for index in range(4)})
    for get in (planner.get_balanced_memory, ours_for_transformers.get_balanced_memory):
        found = get(model, {**budgets, **CPU}, low_zero=True)
        assert found[zero] == 0
        assert plan(model, found)["" if len({*plan(model, found).values()}) == 1 else "l0"] != zero


@pytest.mark.parametrize("budgets", [{0: 5000, 2: 5000}, {1: 5000, 2: 5000}])
def test_b9f_upstream_raises_for_such_ids(budgets: dict[Any, int]) -> None:
    model = root(**{f"l{index}": Leaf(400) for index in range(4)})
    for upstream in (accelerate, transformers):
        with pytest.raises(KeyError):
            upstream.get_balanced_memory(model, {**budgets, **CPU}, low_zero=True)


# B10: names in maps


@pytest.mark.parametrize(
    ("names", "device_map", "uncovered"),
    [
        (("visual_proj", "head"), {"visual.proj": 0, "head": 1}, "visual_proj.w"),
        (("layers_1", "layers_10"), {"layers_1": 0}, "layers_10.w"),
        (("head", "head_norm"), {"head": 1}, "head_norm.w"),
    ],
)
def test_b10_a_key_covers_its_own_dotted_names_only(
    names: tuple[str, ...], device_map: dict[str, int], uncovered: str
) -> None:
    model = root(**{name: Leaf(4) for name in names})
    with pytest.raises(ValueError, match=rf"following parameters: {uncovered}$"), _warnings_allowed():
        planner.check_device_map(model, device_map)
    assert f"{uncovered} is on no device" in str(faults_in(model, device_map, None))


def test_b10_a_key_that_is_no_regular_expression_is_a_key() -> None:
    model = root(a=Leaf(4))
    with pytest.warns(UserWarning, match="do not match any submodules"):
        planner.check_device_map(model, {"a": 0, "blocks.a(b": 1})


def _warnings_allowed() -> Any:
    return warnings.catch_warnings(action="ignore")


# B11: balanced budgets for a class that is not there


def test_b11_a_no_split_class_that_the_model_lacks_is_ignored_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    budgets = {0: 1000, 1: 1000, **CPU}
    with pytest.raises(ValueError, match="max"):
        transformers.get_balanced_memory(four(), dict(budgets), {"Nowhere"})
    with caplog.at_level(logging.WARNING, logger="planner"):
        found = ours_for_transformers.get_balanced_memory(four(), budgets, {"Nowhere"})
    assert found == ours_for_transformers.get_balanced_memory(four(), budgets)
    assert "Nowhere" in caplog.text


# B12: budgets


@pytest.mark.parametrize("budget", [-5, float("nan"), float("inf"), True, "-1GB", None, [1]])
def test_b12_a_budget_that_makes_no_sense_is_refused(budget: Any) -> None:
    with pytest.raises(planner.InvalidInputError):
        planner.infer_auto_device_map(four(), {0: budget, **CPU})
    with pytest.raises(planner.InvalidInputError):
        ours_for_transformers.infer_auto_device_map(four(), {0: budget, **CPU})


@pytest.mark.parametrize("key", [-1, True, "gpu", "cuda:x", 1.5, None, "cpu:1"])
def test_b12b_a_key_that_names_no_device_is_refused(key: Any) -> None:
    with pytest.raises(planner.InvalidDevicesError):
        planner.infer_auto_device_map(four(), {key: 1000, **CPU})


def test_b12b_an_absent_accelerator_is_planned_for_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="planner"):
        assert plan(four(), {5: 10_000, **CPU}) == {"": 5}
    assert "Device 5 is not available" in caplog.text


@pytest.mark.parametrize("key", ["cuda:0", "0", torch.device("cuda:0"), torch.device("cuda", 0), "cuda"])
def test_b12c_all_spellings_of_a_device_are_accepted(key: Any) -> None:
    if isinstance(key, str):
        raised(ValueError, accelerate.infer_auto_device_map, four(), {key: 900, **CPU})
    assert plan(four(), {key: 900, 1: 900, **CPU}) == {"a": 0, "b": 1, "c": 1, "d": "cpu"}


def test_b12c_two_spellings_of_one_device_are_refused() -> None:
    with pytest.raises(planner.InvalidDevicesError, match="same device"):
        planner.infer_auto_device_map(four(), {0: 900, "cuda:0": 900})


def test_b12d_without_a_cpu_budget_the_rest_is_on_disk() -> None:
    assert same_as_accelerate(four(), {}) == {"": "disk"}
    assert same_as_accelerate(four(), {0: 900}) == {"a": 0, "b": "disk", "c": "disk", "d": "disk"}


def test_b12e_a_disk_budget_is_honoured() -> None:
    budgets = {0: 900, "cpu": 0, "disk": 1200}
    assert plan(four(), budgets) == {"a": 0, "b": "disk", "c": "disk", "d": "disk"}
    with pytest.raises(planner.InfeasibleError) as caught:
        planner.infer_auto_device_map(four(), {**budgets, "disk": 1000})
    assert (caught.value.block, caught.value.device, caught.value.shortfall_bytes) == ("d", "disk", 200)
    assert dict(accelerate.infer_auto_device_map(four(), {**budgets, "disk": 0}))["d"] == "disk", (
        "ignored upstream"
    )


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("10GB", 10**10),
        ("10GiB", 10 * 2**30),
        ("10 GiB", 10 * 2**30),
        ("900", 900),
        ("10TB", 10**13),
        ("0.5KB", 500),
    ],
)
def test_b12f_sizes_in_words(words: str, size: int) -> None:
    assert planner.convert_file_size_to_int(words) == size
    assert planner.get_max_memory({0: words}) == {0: size}


@pytest.mark.parametrize("words", ["10gb", "10Gb"])
def test_b12f_a_lower_case_b_means_bits_as_in_accelerate_and_is_warned_of(words: str) -> None:
    assert accelerate.convert_file_size_to_int(words) == 1_250_000_000
    with pytest.warns(UserWarning, match="bits"):
        assert planner.convert_file_size_to_int(words) == 1_250_000_000
    with pytest.warns(UserWarning, match="bits"):
        assert planner.get_max_memory({0: words}) == {0: 1_250_000_000}


@pytest.mark.parametrize(
    "words", ["50%", "10G", "ten", "", "GB", "1e400", "-1KB", "nanGB", "1.2.3GB", "10 G B"]
)
def test_b12f_what_is_no_size_is_refused(words: str) -> None:
    with pytest.raises(planner.InvalidByteSizeError):
        planner.convert_file_size_to_int(words)


def test_b12g_the_callers_budgets_stay_as_they_are() -> None:
    budgets = {"cpu": "1MB", 0: "2KB"}
    plan(four(), budgets)
    planner.get_balanced_memory(four(), budgets)
    planner.get_max_memory(budgets)
    plan_like_transformers(four(), budgets)
    ours_for_transformers.get_balanced_memory(four(), budgets)
    assert list(budgets.items()) == [("cpu", "1MB"), (0, "2KB")]


# B13: bytes of dtypes


@pytest.mark.parametrize("name", ["int4", "uint4", "int1", "uint7", "float4_e2m1fn_x2", "bits8"])
def test_b13_small_dtypes_take_what_they_store(name: str) -> None:
    dtype = getattr(torch, name, None)
    if dtype is None:
        pytest.skip(f"this torch has no {name}")
    model = root(a=nn.Module())
    model.a.register_buffer("t", torch.empty(100, dtype=dtype, device="meta"))
    assert planner.compute_module_sizes(model)["a"] == model.a.t.untyped_storage().nbytes()
    assert plan(model, {0: 99, **CPU}) == {"a": "cpu"}
    assert plan(model, {0: 100, **CPU}) == {"a": 0}


def test_b13_a_model_planned_in_int4_takes_room() -> None:
    model = nn.Linear(10, 10, device="meta")
    assert accelerate.infer_auto_device_map(model, {0: 10, **CPU}, dtype=torch.int4) == {"": 0}
    assert plan(model, {0: 10, **CPU}, dtype=torch.int4) == {"": "cpu"}


def test_b13_a_bool_takes_a_byte() -> None:
    model = root(a=nn.Module())
    model.a.register_buffer("mask", torch.empty(800, dtype=torch.bool, device="meta"))
    assert accelerate.infer_auto_device_map(model, {0: 100, **CPU}) == {"a": 0}
    assert plan(model, {0: 799, **CPU}) == {"a": "cpu"}
    assert plan(model, {0: 800, **CPU}) == {"a": 0}
    assert planner.dtype_byte_size(torch.bool) == 1


def test_b13_an_upcast_takes_more() -> None:
    model = nn.Linear(10, 10, bias=False, device="meta", dtype=torch.float16)
    assert accelerate.infer_auto_device_map(model, {0: 200, **CPU}, dtype=torch.float32) == {"weight": 0}
    assert plan(model, {0: 399, **CPU}, dtype=torch.float32) == {"weight": "cpu"}
    assert plan(model, {0: 400, **CPU}, dtype=torch.float32) == {"weight": 0}


# B14 and B15: what may be split


class SubBlk(Blk):
    pass


def test_b14_no_split_classes_are_exact_names() -> None:
    model = root(a=SubBlk(400, 400, 400), b=SubBlk(400, 400, 400))
    placed = same_as_accelerate(model, {0: 2000, **CPU}, no_split_module_classes=["Blk"])
    assert placed == {"a": 0, "b.l0": 0, "b.l1": "cpu", "b.l2": "cpu"}
    whole = same_as_accelerate(model, {0: 2000, **CPU}, no_split_module_classes=["SubBlk"])
    assert whole == {"": "cpu"}, "a block and the largest layer, a block, need 2400"


def test_b15_a_module_without_children_is_never_split() -> None:
    model = nn.Module()
    model.a = nn.Module()
    model.a.v, model.a.w = parameter(400), parameter(400)
    assert same_as_accelerate(model, {0: 500, **CPU}) == {"a": "cpu"}


# Transitive ties


def test_a_chain_of_ties_is_one_unit() -> None:
    def model() -> nn.Module:
        model = root(a=Leaf(100), b=Leaf(100), c=Leaf(100))
        model.b.v, model.c.v = parameter(50), parameter(50)
        return tie(model, b__w="a.w", c__v="b.v")

    raised(IndexError, accelerate.infer_auto_device_map, model(), {0: 450, **CPU})
    for budget in range(0, 500, 10):
        placed = plan(model(), {0: budget, **CPU}, clean_result=False)
        assert placed["a"] == placed["b"] == placed["c"]
        assert plan_like_transformers(model(), {0: budget, **CPU}, clean_result=False) == placed


def test_float_budgets_work_with_the_fallback() -> None:
    model = root(a=Leaf(2), b=Leaf(1), c=Leaf(3))
    raised(
        AttributeError, accelerate.infer_auto_device_map, model, {0: 4.0, "cpu": 6}, fallback_allocation=True
    )
    assert plan(model, {0: 4.0, "cpu": 6}, fallback_allocation=True) == {"b": 0, "a": "cpu", "c": "cpu"}
    assert plan(model, {0: 3.9, "cpu": 6}, fallback_allocation=True) == {"": "cpu"}
