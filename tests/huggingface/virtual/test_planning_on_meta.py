"""Inside of `planner.integrate()`, `from_pretrained` is planned on meta: with bytes, ties and budgets as of the loaded model."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import planner
from rig import Accelerators
from tiny_folders import MODELS, bytes_by_device, llama, map_of, on_meta, saved_in

KIB = 1 << 10


def used_bytes(plan: planner.Plan) -> dict[str, int]:
    names = {0: "virtual:0", 1: "virtual:1"}
    return {names.get(each.id, str(each.id)): each.used_bytes for each in plan.devices if each.used_bytes}


def load(folder: str, **said: Any) -> Any:
    family = tf.AutoModelForSeq2SeqLM if folder.endswith("t5") else tf.AutoModelForCausalLM
    return family.from_pretrained(folder, **said)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model with more than ten layers, so that the name of one begins another's."""
    return saved_in(tmp_path_factory.mktemp("twelve"), partial(llama, layers=12))


# ---- Bytes and ties


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("tied_llama", torch.bfloat16),
        ("t5", torch.float16),
        ("mixtral", torch.float32),
        *(
            pytest.param(name, dtype, marks=pytest.mark.sweep)
            for name in MODELS
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
        ),
    ],
)
def test_the_bytes_of_a_plan_are_those_of_the_loaded_model(
    name: str, dtype: torch.dtype, tmp_path: Path, virtual_accelerators: Accelerators
) -> None:
    folder = saved_in(tmp_path / name, MODELS[name])
    whole_bytes = sum(bytes_by_device(load(folder, dtype=dtype)).values())
    budgets = {0: whole_bytes * 3 // 5, 1: whole_bytes * 3 // 5, "cpu": "1GiB"}
    said = copy.deepcopy(budgets)
    gc.collect()  # models of earlier tests that only cycles hold would count
    virtual_accelerators.reset()
    with planner.integrate() as here:
        model = load(folder, dtype=dtype, device_map="auto", max_memory=budgets)
    (plan,) = here.plans
    assert planner.plan_of(model) is plan and dict(plan.device_map) == model.hf_device_map
    assert plan.source.total_bytes == whole_bytes
    assert bytes_by_device(model) == used_bytes(plan)
    assert not any(plan.offloaded_bytes.values()) and budgets == said
    for device in plan.devices[:2]:
        assert virtual_accelerators.used_bytes(int(device.id)) == device.used_bytes
        if name != "mixtral":  # whose experts transformers puts together where they will lie
            assert virtual_accelerators.peak_bytes(int(device.id)) == device.used_bytes


def test_a_tie_that_is_not_made_yet_is_not_split(tmp_path: Path) -> None:
    folder = saved_in(tmp_path, MODELS["tied_llama"])
    with planner.integrate() as here:
        model = load(folder, device_map="auto", max_memory={0: 40 * KIB, 1: 100 * KIB, "cpu": "1GiB"})
    assert model.lm_head.weight is model.model.embed_tokens.weight
    (plan,) = here.plans
    assert plan.device_map["lm_head"] == plan.device_map["model.embed_tokens"]


def test_a_model_on_one_device_has_a_plan_and_no_map(twelve: str) -> None:
    with planner.integrate() as here:
        model = load(twelve, device_map="auto", max_memory={1: "1GiB"})
    assert not hasattr(model, "hf_device_map") and model.device == torch.device("virtual:1")
    assert planner.plan_of(model) is here.plans[0]


def test_the_block_that_says_where_inputs_belong_stays_on_an_accelerator(twelve: str) -> None:
    """Of no block more or less is offloaded for it."""
    with planner.integrate() as here:
        model = load(twelve, device_map="auto", max_memory={0: 100 * KIB, "cpu": "1GiB"})
    (told,) = [reason for reason in here.plans[0].reasons if reason.rule == "first_block"]
    assert (told.name, told.device) == ("model.embed_tokens", 0) and model.device.index == 0


# ---- Budgets


def test_without_a_budget_for_the_cpu_the_rest_stays_on_disk_with_one_warning(twelve: str) -> None:
    with planner.integrate() as here, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = load(twelve, device_map="auto", max_memory={0: 200 * KIB})
    (plan,) = here.plans
    on_disk = [name for name, device in model.hf_device_map.items() if device == "disk"]
    (warning,) = [str(each.message) for each in told if "left on disk" in str(each.message)]
    assert on_disk and all(repr(name) in warning for name in on_disk)
    assert f"{plan.offloaded_bytes['disk'] / KIB:.0f} KiB" in warning and "names no cpu" in warning


def test_without_budgets_a_tenth_of_each_accelerator_stays_free(twelve: str) -> None:
    with planner.integrate() as here:
        load(twelve, device_map="auto")
    for device in here.plans[0].devices[:2]:
        assert device.headroom_bytes == pytest.approx(device.budget_bytes / 10)


def test_settings_of_the_integration_count(twelve: str) -> None:
    settings: dict[str, Any] = {"max_memory": {0: "1GiB", "cpu": "1GiB"}, "pin": {"model.layers.3": "cpu"}}
    with planner.integrate(headroom={0: "30%"}, **settings) as here:
        assert load(twelve, device_map="auto").hf_device_map["model.layers.3"] == "cpu"
        assert load(twelve, device_map="auto", max_memory={1: "1GiB", "cpu": "1GiB", 0: 0}).device.index == 1
    assert here.plans[0].devices[0].headroom_bytes == (1 << 30) * 3 // 10


@pytest.mark.parametrize(
    ("budgets", "error"),
    [
        ({0: 2000}, planner.InfeasibleError),
        ({0: 2000, "cpu": 3000}, planner.InfeasibleError),
        ({0: "1GiB", 5: "1GiB"}, planner.InvalidDevicesError),
        ({-1: "1GiB"}, planner.InvalidDevicesError),
        ({0: -5}, planner.InvalidDevicesError),
        ({"tpu": 5}, planner.InvalidDevicesError),
        ([3], planner.InvalidDevicesError),
        ({0: "lots"}, planner.InvalidByteSizeError),
    ],
)
@pytest.mark.parametrize("auto", ["best", "transformers"])
def test_budgets_that_make_no_sense_are_refused(
    auto: Any, budgets: Any, error: type[planner.PlannerError]
) -> None:
    if auto == "transformers" and error is planner.InfeasibleError:
        pytest.skip("its rest goes to disk")
    with planner.integrate(auto=auto), pytest.raises(error) as raised:
        map_of(on_meta(llama), "auto", budgets)
    if isinstance(raised.value, planner.InfeasibleError):
        assert raised.value.block == "model.embed_tokens" and raised.value.shortfall_bytes


# ---- transformers' own strategies


@pytest.mark.parametrize("strategy", ["auto", "balanced", "balanced_low_0", "sequential"])
@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(name, marks=pytest.mark.sweep) for name in MODELS if name != "llama")]
)
def test_its_own_strategies_give_its_own_maps_key_for_key(name: str, strategy: str) -> None:
    model = on_meta(MODELS[name])
    whole_bytes = model.get_memory_footprint()
    for budgets in (
        {0: whole_bytes // 2, 1: whole_bytes // 2, "cpu": "1GiB"},
        {0: whole_bytes // 3, "cpu": whole_bytes // 3},
    ):
        theirs = map_of(model, strategy, copy.deepcopy(budgets))
        with planner.integrate(auto="transformers") as here, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = map_of(model, strategy, budgets)
        assert list(ours.items()) == list(theirs.items())
        assert not here.plans and planner.plan_of(model) is None


def test_what_names_a_strategy_is_never_a_plan_of_ours(twelve: str) -> None:
    with planner.integrate() as here:
        load(twelve, device_map="balanced", max_memory={0: "1GiB", 1: "1GiB"})
    assert not here.plans


# ---- Plans and maps that are given


def test_a_plan_is_carried_out_with_its_execution_map(twelve: str) -> None:
    plan = planner.plan(twelve, max_memory={0: 200 * KIB, "cpu": "1GiB"}, execute_offloaded="cpu")
    with planner.integrate() as here:
        found = map_of(on_meta(partial(llama, layers=12)), plan)
        assert found == plan.device_map and found.execution_map == plan.execution_map  # type: ignore[attr-defined]
        assert here.plans == (plan,)
        found = map_of(on_meta(partial(llama, layers=12)), plan.device_map)
        assert found.execution_map == plan.execution_map  # type: ignore[attr-defined]
        assert here.plans == (plan,), "a map is no plan"


@pytest.mark.parametrize(
    "name", ["mixtral", "t5", *(pytest.param(name, marks=pytest.mark.sweep) for name in MODELS)]
)
def test_a_plan_of_the_files_is_a_plan_of_the_model(name: str, tmp_path: Path) -> None:
    folder = saved_in(tmp_path, MODELS[name])
    plan = planner.plan(folder, max_memory={0: 100 * KIB, 1: 100 * KIB, "cpu": "1GiB"})
    with planner.integrate(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert map_of(on_meta(MODELS[name]), plan) == plan.device_map


@pytest.mark.parametrize("make", [MODELS["gpt2"], partial(llama, layers=2)])
def test_a_plan_of_another_model_is_refused(make: Callable[[], Any]) -> None:
    plan = planner.plan(make(), max_memory={0: "1GiB"})  # whose only key is for everything
    with planner.integrate() as here, pytest.raises(planner.PlanMismatchError, match="another model"):
        map_of(on_meta(llama), plan)
    assert not here.plans


def test_a_plan_for_a_smaller_dtype_is_warned_of(twelve: str) -> None:
    plan = planner.plan(twelve, dtype="float16", max_memory={0: "1GiB"})
    with planner.integrate(), pytest.warns(UserWarning, match=r"loaded as torch\.float32"):
        map_of(on_meta(partial(llama, layers=12)), plan)


def test_a_key_is_not_taken_for_the_beginning_of_another_name(twelve: str) -> None:
    given = {"model.layers.1": "cpu", "": 0}
    with planner.integrate():
        model = load(twelve, device_map=given)
    assert given == {"model.layers.1": "cpu", "": 0}
    assert {name for name, device in model.hf_device_map.items() if device == "cpu"} == {"model.layers.1"}
    assert {str(layer.mlp.up_proj.weight.device) for layer in model.model.layers[10:]} == {"virtual:0"}


@pytest.mark.parametrize(
    ("words", "head"), [("disk", 0), ("disk", 1), ("disk", "cpu"), (0, "disk"), (1, "disk")]
)
def test_a_tied_weight_on_disk_is_there_under_all_its_names(words: Any, head: Any, tmp_path: Path) -> None:
    folder = saved_in(tmp_path, MODELS["tied_llama"])
    given = {"": 0, "model.embed_tokens": words, "model.layers": "disk", "lm_head": head}
    with planner.integrate():
        model = load(folder, device_map=given)
    ids = torch.arange(3, 9)[None].to(0)
    want = load(folder, device_map=0)(ids).logits
    assert model(ids).logits.to(0).equal(want)
    model.save_pretrained(tmp_path / "saved")
    assert load(str(tmp_path / "saved"), device_map=0)(ids).logits.equal(want)


def test_a_key_that_names_nothing_is_warned_of_with_the_nearest_name() -> None:
    with planner.integrate(), pytest.warns(UserWarning, match=r"did you mean 'model\.layers\.1'"):
        assert map_of(on_meta(llama), {"model.layer.1": "cpu", "": 0}) == {"": 0}


@pytest.mark.parametrize(
    ("device_map", "error"),
    [
        ({"model.layers": 0, "lm_head": 0}, planner.PlanMismatchError),
        ({"": 7}, planner.PlanMismatchError),
        ({"model": -1, "lm_head": 0}, planner.InvalidDevicesError),
        ({"model": "gpu0", "lm_head": 0}, planner.InvalidDevicesError),
        ({"model": "cuda:0", "lm_head": "cpu"}, planner.InvalidDevicesError),  # there is no CUDA here
        ({"": torch.device("cuda")}, planner.InvalidDevicesError),
        ({"": "xpu:0"}, planner.InvalidDevicesError),
        ({"": "9"}, planner.PlanMismatchError),
        ({"model.norm.weight": 0, 5: 1, "": 0}, planner.InvalidConstraintError),
    ],
)
def test_a_map_that_cannot_be_carried_out_is_refused(
    device_map: Any, error: type[planner.PlannerError]
) -> None:
    with planner.integrate(), pytest.raises(error):
        map_of(on_meta(llama), device_map)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_a_device_that_is_absent_is_told_before_a_byte_is_loaded(
    twelve: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tf.PreTrainedModel, "_load_pretrained_model", None)
    for device_map in ("cuda:0", {"": "cuda:0", "lm_head": "cpu"}):
        with planner.integrate(), pytest.raises(planner.InvalidDevicesError, match=r"cuda.* cannot be used"):
            load(twelve, device_map=device_map)


def test_the_number_of_a_device_may_be_a_text(twelve: str) -> None:
    with planner.integrate():
        assert load(twelve, device_map={"": "1"}).device.index == 1
        model = load(twelve, device_map={"": "0", "lm_head": "1"})
    assert model.hf_device_map == {"": 0, "lm_head": 1}
    ids = torch.arange(3, 9)[None].to(0)
    assert model(ids).logits.to(0).equal(load(twelve, device_map=0)(ids).logits)


def test_budgets_without_devices_say_no_more_than_none(twelve: str) -> None:
    with planner.integrate() as here:
        load(twelve, device_map="auto", max_memory={})
        load(twelve, device_map="auto")
    empty, none = here.plans
    assert empty.device_map == none.device_map
    assert [device.headroom_bytes > 0 for device in empty.devices[:2]] == [True, True]
