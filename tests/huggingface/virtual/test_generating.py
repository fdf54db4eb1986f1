"""Models that were loaded inside say and generate what the undispatched model does, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import planner
from rig import Accelerators
from tiny_folders import llama, saved_in

IDS = torch.arange(1, 13).reshape(2, 6)
MAPS: dict[str, tuple[int | str, ...]] = {
    "two": (0, 0, 1, 1),
    "cpu": (0, "cpu", 0, "cpu"),
    "disk": (0, "disk", 0, "disk"),
    "mixed": (0, "cpu", 1, "disk"),
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static": {"cache_implementation": "static"},
    "beams": {"num_beams": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_in(tmp_path_factory.mktemp("llama"), llama)


def load(folder: str, **said: Any) -> Any:
    return tf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **said)


def device_map(name: str) -> dict[str, int | str]:
    return {"": 0} | {f"model.layers.{number}": place for number, place in enumerate(MAPS[name])}


@torch.no_grad()
def answers(model: Any, ways: dict[str, dict[str, Any]] = WAYS) -> dict[str, torch.Tensor]:
    """Logits, and what is generated in each way."""
    ids = IDS.to(0)
    found = {"logits": model(ids).logits.cpu()}
    for way, said in ways.items():
        torch.manual_seed(0)
        said = {"max_new_tokens": 4, "do_sample": False, **said}
        found[way] = model.generate(ids, attention_mask=torch.ones_like(ids), **said).cpu()
    return found


@pytest.fixture(scope="module")
def expected(folder: str, registered_accelerators: Accelerators) -> dict[str, torch.Tensor]:
    return answers(load(folder, device_map=0))


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert [name for name, tensor in found.items() if not tensor.equal(expected[name])] == []


@pytest.mark.parametrize("name", MAPS)
def test_own_maps(name: str, folder: str, expected: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with planner.integrate() as here:
        model = load(folder, device_map=device_map(name), offload_folder=tmp_path)
    assert_equal(answers(model), expected)
    assert here.plans == ()
    assert planner.plan_of(model) is None


@pytest.mark.parametrize("auto", ["best", "transformers"])
def test_auto_keeps_budgets(
    auto: Any, folder: str, expected: dict[str, torch.Tensor], virtual_accelerators: Accelerators
) -> None:
    budgets: dict[int | str, int | str] = {0: 60_000, 1: 60_000, "cpu": "1GiB"}
    said = dict(budgets)
    with planner.integrate(auto=auto) as here:
        model = load(folder, device_map="auto", max_memory=said)
    assert said == budgets
    assert_equal(answers(model, {"greedy": {}}), expected)
    if auto == "best":
        assert planner.plan_of(model) is here.plans[-1]
        assert dict(here.plans[-1].device_map) == model.hf_device_map
    for index in (0, 1):
        assert virtual_accelerators.used_bytes(index) <= int(budgets[index])


def test_a_plan_made_before(folder: str, expected: dict[str, torch.Tensor], tmp_path: Path) -> None:
    plan = planner.plan(folder, max_memory={0: 80_000, 1: 40_000, "disk": "1GiB"})
    assert {0, 1, "disk"} == set(plan.device_map.values())
    plain = load(folder, device_map=plan.device_map, offload_folder=tmp_path / "plain")
    assert type(plain.lm_head._hf_hook).__module__ == "accelerate.hooks"
    assert_equal(answers(plain, {"greedy": {}}), expected)
    for number, given in enumerate((plan, plan.device_map, dict(plan.device_map))):
        with planner.integrate():
            model = load(folder, device_map=given, offload_folder=tmp_path / str(number))
        assert type(model.lm_head._hf_hook).__module__.startswith("planner.")
        assert planner.plan_of(model) is (plan if given is plan else None)
        assert_equal(answers(model, {"greedy": {}}), expected)
