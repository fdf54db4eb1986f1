"""A cache that rests on the cpu takes room there, in every answer and picture."""

from __future__ import annotations

import json
from typing import Any

import pytest

import planner
from planner import InfeasibleError, InvalidInputError, Plan
from planner.checker.equation import unequal_budgets
from planner.devices.budgets import DeviceBudget, with_taken
from planner.report.html import html_report
from planner.report.terminal import plan_view

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
}
WORK = {"context_length": 256, "cache": "offloaded", "allocator_margin": 0}
RESTS = 6 * 2 * 2 * 16 * 256 * 4  # of six layers keys and values of two heads


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("transformers")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**CONFIG))


def planned(source: Any, budgets: dict[Any, int], **said: Any) -> Plan:
    return planner.plan(source, max_memory=budgets, headroom=None, workload={**WORK, **said})


def adds_up(plan: Plan) -> bool:
    return all(
        device.budget_bytes == device.headroom_bytes + device.taken_bytes + (device.free_bytes or 0)
        for device in plan.devices
    )


def test_what_rests_is_counted_on_the_cpu(source: Any) -> None:
    plan = planned(source, {0: 1 << 24, "cpu": 1 << 24})
    card, cpu = plan.devices
    assert (cpu.cache_bytes, cpu.used_bytes, cpu.activation_bytes) == (RESTS, 0, 0)
    assert card.cache_bytes == RESTS // 6  # between forwards the first layer is there
    assert adds_up(plan)
    assert not list(unequal_budgets(json.loads(plan.to_json())["devices"]))
    assert Plan.from_json(plan.to_json()) == plan
    assert max(peaks["cpu"] for peaks in plan.predicted_peaks.values()) == RESTS // 6 * 5
    assert f"cpu: 0 B weights, {RESTS // 1024} KiB cache" in plan.summary()
    assert "of its cache rest on the CPU" in planner.explain(plan, "model.layers.3")
    assert "rests on the CPU" in html_report(plan)
    assert "cache" in str(plan_view(plan))
    assert "cache" in plan._repr_html_()


def test_without_a_budget_of_the_cpu_it_is_only_told(source: Any) -> None:
    plan = planned(source, {0: 1 << 24})
    assert plan.demands is not None
    assert plan.demands.resting_bytes == RESTS
    assert "of the cache rest on the cpu" in plan.summary()
    assert all(set(peaks) == {0} for peaks in plan.predicted_peaks.values())


def test_weights_that_are_offloaded_get_what_the_cache_leaves(source: Any) -> None:
    whole = planned(source, {0: 1 << 24})
    card_bytes = whole.devices[0].peak_bytes - 60_000
    roomy = planned(source, {0: card_bytes, "cpu": 1 << 24})
    offloaded = roomy.offloaded_bytes["cpu"]
    assert offloaded > 0
    exact = planned(source, {0: card_bytes, "cpu": RESTS + offloaded})
    assert exact.devices[1].free_bytes == 0
    assert adds_up(exact)
    with pytest.raises(InfeasibleError):
        planned(source, {0: card_bytes, "cpu": RESTS + offloaded - 1})


def test_a_cpu_without_room_for_the_cache_has_no_plan(source: Any) -> None:
    planned(source, {0: 1 << 24, "cpu": RESTS})
    with pytest.raises(InfeasibleError, match="rest on cpu, which has") as told:
        planned(source, {0: 1 << 24, "cpu": RESTS - 8})
    assert (told.value.more_bytes, told.value.shortfall_bytes) == ({"cpu": 8}, 8)


def test_many_budgets_are_answered_one_by_one(source: Any) -> None:
    rows = [{0: 1 << 24, "cpu": RESTS - 1}, {0: 1 << 24, "cpu": RESTS}, {0: 1 << 24}]
    plans = planner.plan_many(source, rows, headroom=None, workload=WORK)
    assert [isinstance(plan, Plan) for plan in plans] == [False, True, True]


def test_the_cpu_bounds_the_largest_context(source: Any) -> None:
    budgets = {0: 1 << 26, "cpu": RESTS}
    said = {key: value for key, value in WORK.items() if key != "context_length"}
    found = planner.largest(source, "context_length", max_memory=budgets, headroom=None, workload=said)
    assert (found.value, found.limit) == (256, "proven")


@pytest.mark.parametrize("headroom", [0, 7, "10%"])
def test_what_more_a_budget_needs_is_enough_and_no_less(headroom: int | str) -> None:
    budget = DeviceBudget(device="cpu", budget_bytes=100, headroom=headroom, origin="user")
    for taken in (0, 50, 100, 1000):
        (short,) = with_taken([budget], taken)
        for room in (0, 1, 30):
            more = short.more_bytes(room)
            assert more is not None
            grown = DeviceBudget(
                device="cpu", budget_bytes=100 + more, headroom=headroom, origin="user", taken_bytes=taken
            )
            assert not grown.lacking_bytes
            assert grown.capacity_bytes >= short.capacity_bytes + room


def test_a_model_with_an_encoder_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4, vocab_size=64)
    )
    with pytest.raises(InvalidInputError, match="does not run with an encoder"):
        planned(model, {0: 1 << 24})
