"""A workload in plans: what it may say, what it adds to devices, and what of it is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaForCausalLM

import planner
from planner import InfeasibleError, InvalidConfigError, InvalidConstraintError, InvalidInputError, Plan
from planner.names import device_of
from planner.planning.margins import margin_bytes
from planner.plans.parts import DevicePlan
from planner.settings.schema import Settings
from tiny_folders import saved_in
from tiny_models import TINY, built

WORK = {"context_length": 64, "batch_size": 2, "allocator_margin": 0}


def adds_up(device: DevicePlan) -> bool:
    parts = (
        device.headroom_bytes,
        device.margin_bytes,
        device.used_bytes,
        device.buffer_bytes,
        device.cache_bytes,
        device.activation_bytes,
        device.reserved_bytes,
        device.free_bytes or 0,
    )
    return sum(parts) == device.budget_bytes


def planned(name: str, room: int = 1 << 22, **workload: Any) -> Plan:
    return planner.plan(
        built(name), max_memory={0: room, 1: room, "cpu": 1 << 24}, workload={**WORK, **workload}
    )


@pytest.mark.parametrize("name", TINY)
def test_the_budget_is_its_parts(name: str) -> None:
    for room in (800_000, 1 << 20, 1 << 22):
        plan = planned(name, room, allocator_margin="10%")
        assert all(adds_up(device) for device in plan.devices)
        assert Plan.from_json(plan.to_json()) == plan
        assert Plan.from_json(plan.to_json()).predicted_peaks == plan.predicted_peaks


def test_what_was_asked_of_a_workload_is_checked_at_once() -> None:
    for wrong in (
        {"batch_size": 2},
        {"context_length": 0},
        {"context_length": 2.5},
        {"context_length": 8, "prompt_length": 9},
        {"context_length": 8, "batch_size": -1},
        {"context_length": 8, "cache": "paged"},
        {"context_length": 8, "inputs": {"pixels": ("rows", 3)}},
        {"context_length": 8, "allocator_margin": "101%"},
    ):
        with pytest.raises(InvalidConfigError):
            planner.plan(built("llama"), max_memory={0: 1 << 20}, workload=wrong)


def test_k_is_1024() -> None:
    plan = planned("llama", 1 << 25, context_length="2k")
    assert plan.settings["workload.context_length"].value == 2048
    assert plan == planned("llama", 1 << 25, context_length=2048)


def test_the_cache_is_counted_to_the_byte() -> None:
    """Four layers, keys and values, two sequences of 64 tokens, two heads of 8 floats."""
    plan = planned("llama")
    assert sum(device.cache_bytes for device in plan.devices) == 4 * 2 * 2 * 64 * 2 * 8 * 4


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "mixtral"])
def test_a_plan_fits_into_its_own_peak_and_into_no_byte_less(name: str) -> None:
    full = planner.plan(built(name), max_memory={0: 1 << 26, "cpu": 1 << 26}, workload=WORK)
    peak = full.devices[0].peak_bytes
    exact, less = (
        planner.plan(built(name), max_memory={0: room, "cpu": 1 << 26}, workload=WORK)
        for room in (peak, peak - 1)
    )
    assert (sum(exact.offloaded_bytes.values()), exact.devices[0].free_bytes) == (0, 0)
    assert sum(less.offloaded_bytes.values()) > 0
    assert less.devices[0].cache_bytes == full.devices[0].cache_bytes


def test_a_plan_without_a_workload_says_nothing_of_it() -> None:
    plan = planner.plan(built("llama"), max_memory={0: 1 << 20})
    assert plan.demands is None
    assert not plan.predicted_peaks
    assert plan.devices[0].peak_bytes == plan.devices[0].running_bytes == 0
    assert "activations" not in plan.summary()


def test_summary_and_explain_say_what_running_takes() -> None:
    plan = planned("llama")
    assert "cache" in plan.summary()
    assert "activations" in plan.summary()
    words = planner.explain(plan, "model.layers.1")
    assert "keeps a cache of" in words
    assert "needs most at once" in words


def test_what_does_not_fit_because_of_the_workload_says_so() -> None:
    with pytest.raises(InfeasibleError, match="does not fit"):
        planner.plan(
            built("llama"),
            max_memory={0: 200_000},
            workload={"context_length": 100_000, "allocator_margin": 0},
        )


def test_what_knows_no_workload_refuses_it() -> None:
    with pytest.raises(InvalidConstraintError, match="auto"):
        planner.plan(built("llama"), max_memory={0: 1 << 20}, workload=WORK, strategy="balanced")
    with pytest.raises(InvalidInputError, match="configuration"):
        planner.plan(nn.Linear(2, 2), max_memory={0: 1 << 20}, workload=WORK)


def test_margins_are_for_accelerators_that_run_something() -> None:
    assert margin_bytes("cpu", 1000, "50%") == 0
    assert margin_bytes(0, 1000, "50%") == 500
    assert margin_bytes(0, 0, 5) == 0
    if not torch.cuda.is_available() and not torch.accelerator.is_available():
        assert margin_bytes(0, 1000, None) == 250 + (96 << 20)


def test_plans_of_many_budgets_have_the_workload_too() -> None:
    rows = [{0: 1 << 20, "cpu": 1 << 24}, {0: 1 << 22, "cpu": 1 << 24}]
    plans = planner.plan_many(built("llama"), rows, workload=WORK)
    for row, plan in zip(rows, plans, strict=True):
        assert plan == planner.plan(built("llama"), max_memory=row, workload=WORK)


def test_the_workload_is_off_by_default() -> None:
    assert Settings().workload is None


@pytest.mark.parametrize("of", ["context_length", "batch_size"])
@pytest.mark.parametrize("devices", [{0: 1 << 22}, {0: 600_000, 1: 600_000}, {0: 400_000, "cpu": 1 << 24}])
def test_one_more_than_the_largest_has_no_plan(of: str, devices: dict[Any, int]) -> None:
    other = {"batch_size": 2} if of == "context_length" else {"context_length": 32}
    workload = {**other, "allocator_margin": 0}
    found = planner.largest(built("llama"), of, upto=100_000, max_memory=devices, workload=workload)
    assert found.value < 100_000
    assert found.plan == planner.plan(
        built("llama"), max_memory=devices, workload={**workload, of: found.value}
    )
    with pytest.raises(InfeasibleError):
        planner.plan(built("llama"), max_memory=devices, workload={**workload, of: found.value + 1})


def test_the_models_own_longest_context_is_a_limit() -> None:
    found = planner.largest(
        built("llama"), "context_length", max_memory={0: 1 << 40}, workload={"allocator_margin": 0}
    )
    assert (found.value, found.limit) == (2048, "model")
    assert "longest" in str(found)
    asked = planner.largest(built("llama"), "context_length", upto=10, max_memory={0: 1 << 40})
    assert (asked.value, asked.limit) == (10, "asked")


def test_what_is_asked_for_is_left_out_of_the_workload() -> None:
    with pytest.raises(InvalidInputError, match="leave it out"):
        planner.largest(built("llama"), "batch_size", max_memory={0: 1 << 22}, workload=WORK)
    with pytest.raises(InvalidInputError, match="finds"):
        planner.largest(built("llama"), "tokens", max_memory={0: 1 << 22})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="upto"):
        planner.largest(built("llama"), "batch_size", upto=0, max_memory={0: 1 << 22})


def test_the_first_settings_that_have_a_plan() -> None:
    model = built("llama")
    rows = [{"max_memory": {0: room}, "workload": WORK} for room in (1000, 1 << 22, 1 << 23)]
    found = planner.first_that_fits(model, rows)
    assert (found.index, found.settings) == (1, rows[1])
    with pytest.raises(InfeasibleError):
        planner.first_that_fits(model, rows[:1])
    with pytest.raises(InvalidInputError):
        planner.first_that_fits(model, [])


# ---- Buffers of offloaded blocks


def with_masks() -> nn.Module:
    """Layers of 1 MiB of weights and 64 KiB of masks each; those of every second are in the state dict."""
    root = nn.Module()
    root.layers = nn.ModuleList(nn.Linear(512, 512, bias=False) for _ in range(4))
    for index, layer in enumerate(root.layers):
        layer.register_buffer("mask", torch.zeros(128, 128), persistent=index % 2 == 0)
    return root


def test_buffers_of_offloaded_blocks_count_where_they_run() -> None:
    for room in (1_500_000, 2_500_000, 3_500_000):
        plan = planner.plan(with_masks(), max_memory={0: room, "cpu": 1 << 24})
        accelerator = plan.devices[0]
        offloaded = sum(device_of(f"layers.{index}", plan.device_map) == "cpu" for index in range(4))
        assert accelerator.buffer_bytes == 65536 * offloaded > 0
        assert all(adds_up(device) for device in plan.devices)
        assert Plan.from_json(plan.to_json()) == plan
        assert "buffers of offloaded blocks" in plan.summary()
        assert plan == planner.plan_many(with_masks(), [{0: room, "cpu": 1 << 24}])[0]


def test_saved_buffers_rest_with_the_weights_where_that_is_said() -> None:
    plan = planner.plan(with_masks(), max_memory={0: 2_500_000, "cpu": 1 << 24}, offload_buffers=True)
    unsaved = [name for name in ("layers.1", "layers.3") if device_of(name, plan.device_map) == "cpu"]
    assert plan.devices[0].buffer_bytes == 65536 * len(unsaved)


def test_weights_with_other_heads_than_the_configuration_are_told(tmp_path: Path) -> None:
    folder = saved_in(tmp_path)
    planned = partial(planner.plan, folder, max_memory={0: 1 << 24})
    assert not any("rows" in note for note in planned(workload=WORK).demands.notes)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, "num_key_value_heads": 1}))
    notes = planned(workload=WORK).demands.notes
    assert any("k_proj.weight has 16 rows" in note and "1 heads of 8" in note for note in notes), notes


def test_no_plan_puts_more_buffers_on_a_device_than_it_holds() -> None:
    """Masks of 1 MiB in each of 8 layers, which are in no file: dispatch leaves all of them where the layers run."""
    config = GPTNeoConfig(
        num_layers=8,
        attention_types=[[["global", "local"], 4]],
        max_position_embeddings=1024,
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        vocab_size=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.device("meta"):
        model = GPTNeoForCausalLM(config)
    masks_bytes = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert masks_bytes == 8 << 20
    with pytest.raises(InfeasibleError) as caught:
        planner.plan(model, max_memory={0: "3MiB", "cpu": "1GiB"})
    assert caught.value.is_proven
    least_bytes = caught.value.more_bytes[0] + (3 << 20)
    with pytest.raises(InfeasibleError):
        planner.plan(
            model, max_memory={0: least_bytes - (4 << 10), "cpu": "1GiB"}
        )  # which is known that well
    for room in (least_bytes, 9 << 20):
        plan = planner.plan(model, max_memory={0: room, "cpu": "1GiB"})
        accelerator = plan.devices[0]
        assert plan.offloaded_bytes["cpu"] > 0
        assert accelerator.used_bytes + accelerator.buffer_bytes >= masks_bytes
        assert all(adds_up(device) for device in plan.devices)
    # Run on the CPU, none of them is on the accelerator.
    plan = planner.plan(model, max_memory={0: "3MiB", "cpu": "1GiB"}, execute_offloaded="cpu")
    assert plan.devices[0].buffer_bytes == 0


def with_budgets(room: dict[Any, int], **settings: Any) -> Plan:
    workload = {"context_length": 64, "batch_size": 4}
    return planner.plan(built("llama"), max_memory=room, headroom=None, workload=workload, **settings)


def test_the_cpu_keeps_no_share_for_an_allocator_that_it_does_not_have() -> None:
    """Beside an accelerator that has no room, it needs what it needs alone."""
    enough = with_budgets({"cpu": 1 << 24}).devices[0].peak_bytes
    with_budgets({"cpu": enough})
    plan = with_budgets({0: 1000, "cpu": enough}, execute_offloaded="cpu")
    assert [device.margin_bytes for device in plan.devices] == [0, 0]
    with pytest.raises(InfeasibleError):
        with_budgets({"cpu": enough - 1})
    with pytest.raises(InfeasibleError):
        with_budgets({0: 1000, "cpu": enough - 1}, execute_offloaded="cpu")


@pytest.mark.parametrize("margin", ["25%", "90%"])
def test_where_the_cpu_runs_blocks_too_accelerators_keep_their_share(margin: str) -> None:
    workload = {"context_length": 64, "batch_size": 4, "allocator_margin": margin}
    shares = set()
    for room in range(200_000, 900_000, 100_000):
        plan = planner.plan(
            built("llama"),
            max_memory={0: room, "cpu": 1 << 20},
            headroom=None,
            execute_offloaded="cpu",
            workload=workload,
        )
        assert all(adds_up(device) and (device.free_bytes or 0) >= 0 for device in plan.devices)
        first = plan.devices[0]
        running_bytes = first.cache_bytes + first.activation_bytes
        assert first.margin_bytes == running_bytes * int(margin[:-1]) // 100
        shares.add(running_bytes > 0)
        assert plan.certificate.gap_bytes >= 0
    assert True in shares


def test_a_plan_differs_from_one_with_a_workload() -> None:
    room = {0: 1 << 30}
    plain = planner.plan(built("llama"), max_memory=room, headroom=None)
    running = planner.plan(built("llama"), max_memory=room, headroom=None, workload=WORK)
    found = plain.diff(running)
    assert not found.moved
    assert [each.right_running_bytes for each in found.usage] == [running.devices[0].running_bytes]
    assert str(found).startswith("0: 0 B → ")
    assert str(found).endswith(" to run")
    assert not running.diff(running)


@pytest.mark.parametrize("dtype", ["bool", "int64", "complex64"])
def test_caches_are_of_floating_point_types(dtype: str) -> None:
    with pytest.raises(InvalidConfigError, match=f"expected a floating-point type .*, got '{dtype}'"):
        planned("llama", cache_dtype=dtype)


def test_what_may_be_left_out_is_not_asked_to_be() -> None:
    with pytest.raises(InvalidConfigError, match="expected a number of tokens") as caught:
        planned("llama", prompt_length=0)
    assert "null" not in str(caught.value)


def test_a_refusal_of_transformers_is_told_in_a_line(tmp_path: Path) -> None:
    config = built("llama").config.to_dict()
    config |= {"architectures": ["LlamaForCausalLM"], "layer_types": ["odd"] * 40, "num_hidden_layers": 40}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(planner.CheckpointError, match="refuses the configuration") as caught:
        planner.plan(str(tmp_path), max_memory={0: 1 << 30})
    assert len(str(caught.value)) < len(str(tmp_path)) + 400
    assert str(caught.value).endswith("'odd']")


def test_where_the_cpu_alone_has_room_that_is_said() -> None:
    """Accelerators run what is offloaded, so a small one is in the way of a cpu that could run everything."""
    enough = with_budgets({"cpu": 1 << 24}).devices[0].peak_bytes
    with pytest.raises(InfeasibleError, match="cpu alone has room for all of it: leave 0 out of max_memory"):
        with_budgets({0: 1000, "cpu": enough})
    with_budgets({0: 1000, "cpu": enough}, execute_offloaded="cpu")
    for others in (
        {"cpu": enough - 1},
        {"cpu": enough, "pin": {"lm_head": 0}},
        {"cpu": enough, "mode": "gpu_only"},
    ):
        settings: dict[str, Any] = dict(others)
        with pytest.raises(InfeasibleError) as caught:
            with_budgets({0: 1000, "cpu": settings.pop("cpu")}, **settings)
        assert "cpu alone" not in str(caught.value)


def test_layers_that_no_model_has_are_refused_before_any_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class is known and loaded, so it could be recorded; that would be built first, layer by layer."""
    folder = Path(saved_in(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**7}))
    built_from: list[Any] = []
    monkeypatch.setattr(
        LlamaForCausalLM, "_from_config", classmethod(lambda cls, *args, **kwargs: built_from.append(args))
    )
    with pytest.raises(
        planner.UnknownMemoryError, match="10000000 layers; what runs is told of at most 100000"
    ):
        planner.plan(folder, max_memory={0: 1 << 30}, workload=WORK)
    assert not built_from
