"""Plans with recordings: when there is one, what it says, and what is planned where there is none."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import planner
from planner import InvalidInputError, Plan
from planner.planning import recorded
from tiny_models import TINY, built

WORK = {"context_length": 64, "batch_size": 2, "allocator_margin": 0}
ROOM = {0: 1 << 22, 1: 1 << 22, "cpu": 1 << 24}


def planned(model: Any, budgets: Any = ROOM, *, dtype: str | None = None, **workload: Any) -> Plan:
    return planner.plan(model, max_memory=budgets, workload={**WORK, **workload}, dtype=dtype)


def known(plan: Plan) -> str:
    assert plan.demands is not None
    return plan.demands.method


@pytest.mark.parametrize("name", [name for name in TINY if name != "llava"])
def test_a_live_model_is_recorded(name: str) -> None:
    plan = planned(built(name))
    assert known(plan) == "recorded"
    assert "recorded from a forward" in plan.summary()
    assert set(plan.predicted_peaks) == {"prefill", "decode"}
    for peaks in plan.predicted_peaks.values():
        for device in plan.devices:
            assert peaks.get(device.id, 0) <= device.budget_bytes
    again = Plan.from_json(plan.to_json())
    assert (again, again.predicted_peaks) == (plan, plan.predicted_peaks)


def test_no_plan_keeps_the_model() -> None:
    model = built("llama")
    reference = weakref.ref(model)
    plan = planned(model)
    del model
    gc.collect()
    assert reference() is None
    assert plan.predicted_peaks


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "mixtral"])
@pytest.mark.parametrize("share", [0.4, 0.6])
@pytest.mark.parametrize("prompt", [None, 8])
def test_a_device_is_planned_with_no_less_than_its_replay(
    name: str, share: float, prompt: int | None
) -> None:
    whole = planned(built(name), {0: 1 << 26})
    room = whole.devices[0].running_bytes + int(share * whole.devices[0].used_bytes)
    workload = {} if prompt is None else {"prompt_length": prompt}
    plan = planned(built(name), {0: room, 1: room, "cpu": 1 << 24}, **workload)
    for peaks in plan.predicted_peaks.values():
        for device in plan.devices:
            # What is copied ahead goes into free memory, which nothing else needs.
            assert peaks.get(device.id, 0) <= device.peak_bytes + (device.free_bytes or 0)


def test_what_it_will_be_loaded_as_is_recorded() -> None:
    whole, half = (planned(built("llama"), dtype=dtype) for dtype in (None, "float16"))
    assert known(half) == "recorded"
    assert 2 * sum(each.cache_bytes for each in half.devices) == sum(
        each.cache_bytes for each in whole.devices
    )
    assert planned(built("llama").to(torch.float16)).devices == half.devices


def test_files_are_recorded_where_transformers_is_loaded(tmp_path: Path) -> None:
    """Which this test has loaded; see `test_cli_process.py` for a process without it."""
    model = built("llama")
    data = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}  # type: ignore[union-attr,operator]
    (tmp_path / "config.json").write_text(json.dumps(data, default=str))
    plan = planned(tmp_path)
    assert known(plan) == "recorded"
    assert plan.devices == planned(model).devices


def test_what_cannot_be_recorded_is_planned_by_formula_and_says_why() -> None:
    model: Any = built("llama")
    planner.dispatch(model, planner.plan(model, max_memory={"cpu": "1GiB"}))
    plan = planned(model)
    assert known(plan) == "formula"
    assert "is dispatched" in plan.summary()


def test_an_operator_that_stops_a_recording_is_named() -> None:
    model: Any = built("llama")
    layer = model.model.layers[1].mlp
    forward = type(layer).forward
    layer.forward = lambda states: forward(layer, states[states.flatten(0, 1).nonzero()[:, 0][None] >= 0])
    plan = planned(model)
    assert known(plan) == "formula"
    assert "nonzero" in plan.summary()


def test_inputs_that_forward_does_not_take_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="pixels"):
        planned(built("llama"), inputs={"pixels": ("batch", 3)})


def test_what_a_replay_finds_above_is_planned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With demands that say too little, the difference is made room for."""
    from planner.memory.demands import BlockDemand, Demands

    exact = planned(built("llama"), {0: 1 << 22})

    def nothing(*_: Any, **__: Any) -> Demands:
        names = planner.plan(built("llama"), max_memory={0: "1GiB"}).block_bytes
        return Demands(blocks=dict.fromkeys(names, BlockDemand()), method="recorded")

    monkeypatch.setattr(recorded, "demands_of", nothing)
    plan = planned(built("llama"), {0: 1 << 22})
    predicted = max(peaks[0] for peaks in plan.predicted_peaks.values())
    assert plan.devices[0].peak_bytes == predicted
    assert predicted == max(peaks[0] for peaks in exact.predicted_peaks.values())
    with pytest.raises(planner.InfeasibleError) as raised:
        planned(built("llama"), {0: predicted - 1})
    assert not raised.value.is_proven


@pytest.mark.parametrize("method", ["recorded", "formula"])
def test_a_context_beyond_the_model_is_noticed(method: str) -> None:
    model: Any = built("llama")
    if method == "formula":
        planner.dispatch(model, planner.plan(model, max_memory={"cpu": "1GiB"}))
    longest = model.config.max_position_embeddings
    room = {0: 1 << 36}
    beyond, within = (
        planned(model, room, context_length=length, prompt_length=8, batch_size=1)
        for length in (longest + 1, longest)
    )
    assert known(beyond) == method
    assert f"beyond the {longest}" in beyond.summary()
    assert "beyond the" not in within.summary()
