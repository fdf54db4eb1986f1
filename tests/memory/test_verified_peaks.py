"""`verify` of a plan with a workload: what the dispatched twin holds is what the plan predicts, and what differs is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import planner
from planner import PeakRow, Plan
from planner.memory.recording.session import RecordedRun, record_run
from planner.memory.replay import RunPlacement, replay
from tiny_models import built

WORK = {"context_length": 34, "prompt_length": 32, "batch_size": 2, "allocator_margin": 0}


def planned(name: str, *shares: float, cpu: bool = False, **workload: Any) -> Plan:
    """A plan for accelerators that have each some share of what the whole model takes on one."""
    said = {**WORK, **workload}
    whole = planner.plan(built(name), max_memory={0: 1 << 26}, headroom=None, workload=said)
    budgets: dict[Any, int] = {
        index: int(share * whole.devices[0].peak_bytes) for index, share in enumerate(shares)
    }
    return planner.plan(
        built(name), max_memory=budgets | ({"cpu": 1 << 26} if cpu else {}), headroom=None, workload=said
    )


@pytest.mark.parametrize("name", ["llama", "gemma", "t5", "mixtral"])
def test_an_offloading_plan_predicts_what_its_placed_model_takes(name: str) -> None:
    """With blocks brought in, the next one copied ahead, windows that keep their prompt, an encoder, and experts."""
    plan = planned(name, 0.8, cpu=True, attention_kernel="math")
    assert plan.offloaded_bytes["cpu"]
    assert plan.demands is not None and plan.demands.method == "recorded"
    found = planner.verify(built(name), plan)
    assert [(row.device, row.phase) for row in found.peaks] == [(0, "prefill"), (0, "decode")]
    assert all(row.found_bytes == row.predicted_bytes for row in found.peaks), str(found)


@pytest.mark.parametrize("kernel", ["math", "fused"])
def test_a_plan_over_two_predicts_both(kernel: str) -> None:
    plan = planned("llama", 0.8, 0.8, attention_kernel=kernel)
    found = planner.verify(built("llama"), plan)
    assert {row.device for row in found.peaks} == {0, 1}
    assert all(row.found_bytes == row.predicted_bytes for row in found.peaks), str(found)
    assert "memory, as planned and as found:" in str(found)


def test_a_prediction_that_is_wrong_is_told() -> None:
    plan = planned("llama", 1.0)
    written = json.loads(plan.to_json())
    written["predicted_peaks"]["decode"]["0"] //= 2
    row = planner.verify(built("llama"), Plan.from_json(json.dumps(written))).peaks[1]
    assert row.predicted_bytes == plan.predicted_peaks["decode"][0] // 2
    assert row.found_bytes == plan.predicted_peaks["decode"][0]
    assert str(row).endswith("(100.0 % above)")


def test_a_padded_prompt_has_its_mask() -> None:
    plan = planned("llama", 1.0, is_padded=True)
    assert all(row.found_bytes == row.predicted_bytes for row in planner.verify(built("llama"), plan).peaks)


def test_what_is_planned_by_formula_is_not_below_what_is_found() -> None:
    dispatched = planner.dispatch(built("llama"), {"": "cpu"})  # which is not recorded
    plan = planner.plan(dispatched, max_memory={0: 1 << 26}, headroom=None, workload=WORK)
    assert plan.demands is not None and plan.demands.method == "formula"
    rows = planner.verify(built("llama"), plan).peaks
    assert len(rows) == 2
    assert all(row.found_bytes < row.predicted_bytes for row in rows)


def test_without_a_workload_nothing_is_said_of_memory() -> None:
    found = planner.verify(built("llama"), planner.plan(built("llama"), max_memory={0: 1 << 24}))
    assert (found.peaks, found.peaks_error) == ((), None)
    assert "memory" not in str(found)


def test_a_model_that_cannot_run_the_workload_says_why() -> None:
    plan = planned("llama", 1.0)
    model: Any = built("llama")
    forward = model.forward

    def short(input_ids: torch.Tensor, **others: Any) -> Any:
        if input_ids.shape[1] > 8:
            raise RuntimeError(f"{input_ids.shape[1]} words are too many")
        return forward(input_ids, **others)

    model.forward = short
    found = planner.verify(model, plan)
    assert found.runs and not found.peaks
    assert found.peaks_error == "RuntimeError: 32 words are too many"
    assert "memory was not found" in str(found)


def test_rows_say_how_far_off_they_are() -> None:
    assert str(PeakRow(0, "decode", 1 << 20, 1 << 20)).endswith("(equal)")
    assert str(PeakRow(0, "decode", 1 << 20, (1 << 20) + 8)).endswith("(8 B above)")
    assert PeakRow(0, "decode", 100, 90).off == -0.1


def test_measuring_needs_accelerators() -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has some")
    with pytest.raises(planner.InvalidInputError, match=r"this machine has no accelerator; planner.verify"):
        planner.measure(built("llama").eval(), planned("llama", 1.0))


def test_a_model_that_has_run_before_copies_ahead_in_its_prompt_too() -> None:
    """With room for two blocks, the second prompt takes one block more than the first; that is what a plan predicts."""
    whole = planned("llama", 1.0, attention_kernel="math")
    block = whole.block_bytes["model.layers.1"]
    budgets = {0: whole.devices[0].peak_bytes - block, "cpu": 1 << 26}
    said = {**WORK, "attention_kernel": "math"}
    plan = planner.plan(built("llama"), max_memory=budgets, headroom=None, staging_blocks=2, workload=said)
    rows = planner.verify(built("llama"), plan).peaks
    assert all(row.found_bytes == row.predicted_bytes for row in rows)
    others = planner.plan(built("llama"), max_memory=budgets, headroom=None, workload=said)
    assert plan.devices[0].reserved_bytes == 2 * others.devices[0].reserved_bytes


@pytest.mark.parametrize(("cache", "budget"), [("none", 250_000), ("dynamic", 400_000)])
def test_plans_by_modules_predict_what_their_placed_model_takes(cache: str, budget: int) -> None:
    workload = {"context_length": 32, "batch_size": 3, "cache": cache, "allocator_margin": 0}
    plan = planner.plan(
        built("t5"),
        max_memory={0: budget, 1: budget, "cpu": 2_000_000},
        granularity="module",
        workload=workload,
    )
    assert plan.offloaded_bytes["cpu"]
    rows = planner.verify(built("t5"), plan).peaks
    assert {row.device for row in rows} == {0, 1}
    assert all(row.found_bytes == row.predicted_bytes <= budget for row in rows), rows


def test_lists_that_are_placed_are_brought_in_when_what_is_in_them_runs() -> None:
    """T5's blocks have a list of parts in them, which nobody calls as a whole: it takes what the block takes that has no other."""
    others = ["shared", "encoder.final_layer_norm", "decoder.final_layer_norm", "lm_head"]
    blocks = [f"{side}.block.{number}" for side in ("encoder", "decoder") for number in range(4)]
    run = RecordedRun(inputs=dict.fromkeys(("input_ids", "decoder_input_ids"), ((3, 32), torch.long)))
    found = []
    for suffix in ("", ".layer"):
        names = [name + suffix for name in blocks]
        placement = RunPlacement(
            execution=dict.fromkeys(names, 0), main_device=0, offloaded_bytes=dict.fromkeys(names, 1 << 20)
        )
        found.append(replay(record_run(built("t5"), [*others, *names], run), placement))
    assert found[0] == found[1]
    assert found[0]["prefill"][0] > 1 << 20


def test_inputs_go_where_the_plan_counts_them_though_the_first_block_is_elsewhere() -> None:
    plan = planner.plan(
        built("llama"),
        max_memory={0: 1 << 24, 1: 1 << 24},
        headroom=None,
        workload=WORK,
        pin={"model.embed_tokens": 1, "lm_head": 1, "model.layers": 0, "model.norm": 0},
    )
    rows = planner.verify(built("llama"), plan).peaks
    assert {row.device for row in rows} == {0, 1}
    assert all(row.found_bytes == row.predicted_bytes for row in rows), rows


def test_fake_tensors_get_the_masks_that_real_ones_get() -> None:
    """Without a cache, transformers looks for several sequences in a row, and makes a mask of them where it is traced."""
    from transformers.utils import import_utils

    asked = import_utils.is_fake_tensor
    plan = planned("llama", 1.0, cache="none", attention_kernel="math")
    rows = planner.verify(built("llama"), plan).peaks
    assert all(row.found_bytes == row.predicted_bytes for row in rows), rows
    assert import_utils.is_fake_tensor is asked


_TIED = {
    "gemma": ("model.embed_tokens", "lm_head"),
    "gpt2": ("transformer.wte", "lm_head"),
    "t5": ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"),
}


@pytest.mark.parametrize(
    ("name", "staging_blocks", "more"),
    [
        ("gemma", 1, ()),
        ("gemma", 2, ("model.layers.*",)),
        ("gpt2", 2, ()),
        ("t5", 1, ()),
        ("t5", 2, ("encoder.block.*",)),
    ],
)
def test_tied_weights_are_brought_in_under_each_of_their_names(
    name: str, staging_blocks: int, more: tuple[str, ...]
) -> None:
    """With room for two blocks as well: a tensor of several modules is not copied ahead."""
    plan = planner.plan(
        built(name),
        max_memory={0: 1 << 26, "cpu": 1 << 26},
        headroom=None,
        pin=dict.fromkeys((*_TIED[name], *more), "cpu"),
        staging_blocks=staging_blocks,
        workload={"context_length": 4, "prompt_length": 2, "allocator_margin": 0},
    )
    assert set(_TIED[name]) <= plan.execution_map.keys()
    rows = planner.verify(built(name), plan).peaks
    assert [row.phase for row in rows] == ["prefill", "decode"]
    assert all(row.found_bytes == row.predicted_bytes for row in rows), rows


def test_a_tied_weight_that_was_met_first_where_nothing_runs() -> None:
    """T5 never calls `shared`, under whose name its words are counted."""
    plan = planner.plan(
        built("t5"),
        max_memory={0: 148_629, 1: 294_534, "cpu": 1 << 30},
        headroom=None,
        workload={
            "context_length": 30,
            "prompt_length": 10,
            "batch_size": 2,
            "attention_kernel": "efficient",
            "allocator_margin": 0,
        },
    )
    assert plan.execution_map.keys() >= set(_TIED["t5"])
    rows = planner.verify(built("t5"), plan).peaks
    assert len(rows) == 4
    assert all(row.found_bytes == row.predicted_bytes for row in rows), rows
