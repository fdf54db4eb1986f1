"""`measure` on the virtual accelerators: what they count is what the plan predicts, and all that is wrong is told before anything runs."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import planner
from planner import InvalidInputError, Plan, PlanMismatchError
from rig import Accelerators
from tiny_models import built

# Virtual accelerators have no fused attention.
WORK = {
    "context_length": 36,
    "prompt_length": 32,
    "batch_size": 2,
    "allocator_margin": 0,
    "attention_kernel": "math",
}


def planned(name: str, *shares: float, cpu: bool = False, **workload: Any) -> Plan:
    said = {**WORK, **workload}
    whole = planner.plan(built(name), max_memory={0: 1 << 26}, headroom=None, workload=said)
    budgets: dict[Any, int] = {
        index: int(share * whole.devices[0].peak_bytes) for index, share in enumerate(shares)
    }
    return planner.plan(
        built(name), max_memory=budgets | ({"cpu": 1 << 26} if cpu else {}), headroom=None, workload=said
    )


def placed(name: str, plan: Plan) -> Any:
    model: Any = built(name).eval()
    return planner.dispatch(model, plan)


@pytest.mark.parametrize("name", ["llama", "gemma", "t5"])
def test_accelerators_count_what_an_offloading_plan_predicts(
    virtual_accelerators: Accelerators, name: str
) -> None:
    plan = planned(name, 0.8, cpu=True)
    assert plan.offloaded_bytes["cpu"]
    model, beside = placed(name, plan), torch.ones(1000, device=0)
    found = planner.measure(model, plan)
    assert found.steps == 4
    assert [(row.device, row.phase) for row in found.peaks] == [(0, "prefill"), (0, "decode")]
    for row in found.peaks:
        # The decode that is predicted follows a prompt of nearly the whole context, whose words are in it.
        assert row.found_bytes == pytest.approx(row.predicted_bytes, rel=0.003)
    assert beside.sum() == 1000


def test_accelerators_count_what_a_plan_over_two_predicts(virtual_accelerators: Accelerators) -> None:
    plan = planned("llama", 0.8, 0.8)
    words = torch.full((2, 32), 3)
    found = planner.measure(placed("llama", plan), plan, {"input_ids": words}, steps=1)
    assert {row.device for row in found.peaks} == {0, 1}
    for row in found.peaks:
        # The end of the context, which decoding takes most at, is three steps away.
        is_close = row.found_bytes == pytest.approx(row.predicted_bytes, rel=0.003)
        assert is_close if row.phase == "prefill" else 0.95 < row.found_bytes / row.predicted_bytes <= 1
    assert "memory, as planned and as measured (1 step):" in str(found)


CACHES: dict[str, dict[str, Any]] = {
    "on the cpu": {"cache": "offloaded"},
    "of another dtype": {"cache_dtype": "float16"},
    "both": {"cache": "offloaded", "cache_dtype": "float16"},
}


@pytest.mark.parametrize("is_offloading", [False, True])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_accelerators_count_what_a_plan_with_another_cache_predicts(
    virtual_accelerators: Accelerators, name: str, cache: str, is_offloading: bool
) -> None:
    shares = (0.85,) if is_offloading else (0.9, 0.9)
    plan = planned(name, *shares, cpu=is_offloading, **CACHES[cache])
    assert bool(plan.offloaded_bytes["cpu"]) == is_offloading
    found = planner.measure(placed(name, plan), plan)
    assert found.peaks
    for row in found.peaks:
        assert row.found_bytes == pytest.approx(row.predicted_bytes, rel=0.003), row


def test_a_prompt_of_all_the_context_is_followed_by_a_shorter_one(virtual_accelerators: Accelerators) -> None:
    plan = planned("llama", 1.0, context_length=32)
    found = planner.measure(placed("llama", plan), plan)
    assert [row.phase for row in found.peaks] == ["prefill", "decode"]
    assert all(row.found_bytes == pytest.approx(row.predicted_bytes, abs=16) for row in found.peaks)


def test_what_runs_beyond_the_plan_is_found_above_it(virtual_accelerators: Accelerators) -> None:
    plan = planned("llama", 1.0)
    model = placed("llama", plan)
    forward = model.forward

    @functools.wraps(forward)
    def wasteful(*args: Any, **kwargs: Any) -> Any:
        waste = torch.empty(1 << 20, dtype=torch.uint8, device=0)
        out = forward(*args, **kwargs)
        del waste
        return out

    model.forward = wasteful
    found = planner.measure(model, plan, steps=0)
    (row,) = found.peaks
    assert (row.phase, row.found_bytes - row.predicted_bytes) == ("prefill", pytest.approx(1 << 20, abs=16))


WRONG: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "no plan": (InvalidInputError, "wants a plan with a workload", {"plan": {"": 0}}),
    "another length": (InvalidInputError, r"of shape \[2, 32\]", {"inputs": torch.ones((2, 31)).long()}),
    "another type": (InvalidInputError, "torch.int64, and this one", {"inputs": torch.ones((2, 32)).int()}),
    "further inputs": (
        InvalidInputError,
        "has the inputs input_ids, and these are",
        {"inputs": {"input_ids": torch.ones((2, 32)).long(), "attention_mask": torch.ones((2, 32)).long()}},
    ),
    "not taken": (InvalidInputError, "does not take these", {"inputs": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)}),
    "no tensors": (InvalidInputError, "are tensors, and 'input_ids' is not", {"inputs": {"input_ids": [1]}}),
    "no inputs": (InvalidInputError, "not str", {"inputs": "words"}),
    "steps below none": (InvalidInputError, "at least 0", {"steps": -1}),
    "steps that are none": (InvalidInputError, "at least 0", {"steps": True}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_told_before_anything_runs(virtual_accelerators: Accelerators, wrong: str) -> None:
    error, words, given = WRONG[wrong]
    plan = planned("llama", 1.0)
    model = placed("llama", plan)
    peak = _left_a_peak(virtual_accelerators)
    with pytest.raises(error, match=words):
        planner.measure(model, given.pop("plan", plan), **given)
    assert virtual_accelerators.peak_bytes(0) == peak


def test_models_that_are_not_placed_by_the_plan_are_refused(virtual_accelerators: Accelerators) -> None:
    plan = planned("llama", 0.8, 0.8)
    model: Any = built("llama").eval()
    with pytest.raises(PlanMismatchError, match=r"is not dispatched; call planner.dispatch"):
        planner.measure(model, plan)
    planner.dispatch(model, planned("llama", 1.0))
    peak = _left_a_peak(virtual_accelerators)
    with pytest.raises(PlanMismatchError, match="by another plan, which differs at") as told:
        planner.measure(model, plan)
    assert "model.layers.3" in told.value.findings
    planner.dispatch(model, plan)
    with pytest.raises(InvalidInputError, match="in training mode"):
        planner.measure(model.train(), plan)
    model.eval()
    with pytest.raises(InvalidInputError, match="has no workload"):
        planner.measure(model, planner.plan(built("llama"), max_memory={0: 1 << 26}))
    assert virtual_accelerators.peak_bytes(0) == peak


def test_the_same_map_run_elsewhere_is_another_plan(virtual_accelerators: Accelerators) -> None:
    plan = planned("llama", 0.8, cpu=True)
    model: Any = built("llama").eval()
    planner.dispatch(model, dict(plan.device_map), execution_map=dict.fromkeys(plan.execution_map, 1))
    with pytest.raises(PlanMismatchError, match="by another plan") as told:
        planner.measure(model, plan)
    assert set(told.value.findings) == set(plan.execution_map)


def test_what_runs_on_the_cpu_counts_no_peaks(virtual_accelerators: Accelerators) -> None:
    plan = planner.plan(built("llama"), max_memory={"cpu": 1 << 26}, workload=WORK)
    with pytest.raises(InvalidInputError, match=r"everything on cpu, which counts no peaks; planner.verify"):
        planner.measure(planner.dispatch(built("llama").eval(), plan), plan)


def _left_a_peak(accelerators: Accelerators) -> int:
    """Leaves a peak that is gone if counters begin anew."""
    accelerators.reset()
    high = torch.empty(1 << 22, dtype=torch.uint8, device=0)
    del high
    return accelerators.peak_bytes(0)
