"""Peaks of a recording, replayed for a placement, equal those that virtual accelerators count in a real run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import planner
from measured_peaks import measured_peaks, run_of
from planner.memory.recording.session import record_run
from planner.memory.replay import RunPlacement, replay
from planner.names import nearest_key
from rig import Accelerators
from tiny_models import built

STEPS = 2
# Where nothing is known to differ; the bench `sweep_peaks.py` has the others.
EXACT = ("llama", "gemma", "gpt2", "t5")
SMALL = 16


def blocks_of(model: Any) -> dict[str, int]:
    return dict(planner.plan(model, max_memory={0: "1TiB"}, headroom=None).block_bytes)


def inputs(name: str, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    given = {"input_ids": torch.ones((rows, tokens), dtype=torch.long)}
    if name == "t5":
        given["decoder_input_ids"] = torch.ones((rows, 5), dtype=torch.long)
    return given


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", EXACT)
def test_one_device(virtual_accelerators: Accelerators, name: str, attention: str) -> None:
    model: Any = built(name)
    model.set_attn_implementation(attention)
    given = inputs(name, 2, 24)
    tape = record_run(model, list(blocks_of(model)), run_of(given, STEPS, {"use_cache": True}))
    model.to(0)
    weights = virtual_accelerators.used_bytes(0)
    real = measured_peaks(model, virtual_accelerators, given, steps=STEPS, options={"use_cache": True})
    found = replay(tape, RunPlacement(execution={}, main_device=0, resident_bytes={0: weights}))
    assert list(real) == list(found) == ["prefill", "decode", "decode 2"]
    for phase, peaks in real.items():
        assert found[phase][0] == pytest.approx(peaks[0], abs=SMALL)


@pytest.mark.parametrize("share", [0.35, 0.7])
@pytest.mark.parametrize("name", EXACT)
def test_two_devices_and_offloaded(virtual_accelerators: Accelerators, name: str, share: float) -> None:
    """A plan over two accelerators; with the smaller budgets it offloads."""
    model: Any = built(name)
    sizes = blocks_of(model)
    total = sum(sizes.values())
    budgets = {0: int(share * total), 1: int(share * total), "cpu": 4 * total}
    plan = planner.plan(model, max_memory=budgets, headroom=None)
    homes = {key: plan.device_map[nearest_key(key, plan.device_map)] for key in sizes}
    offloaded = {key: size for key, size in sizes.items() if homes[key] == "cpu"}
    runs = {key: plan.execution_map.get(key, home) if home == "cpu" else home for key, home in homes.items()}
    given = inputs(name, 2, 24)
    tape = record_run(model, list(sizes), run_of(given, STEPS, {"use_cache": True}))
    planner.dispatch(model, plan)
    weights = {index: virtual_accelerators.used_bytes(index) for index in (0, 1)}
    real = measured_peaks(model, virtual_accelerators, given, steps=STEPS, options={"use_cache": True})
    room = {row.id: row.reserved_bytes + (row.free_bytes or 0) for row in plan.devices if row.id in (0, 1)}
    found = replay(
        tape,
        RunPlacement(
            execution=runs,
            main_device=0,
            resident_bytes=weights,
            offloaded_bytes=offloaded,
            room_bytes=room,
        ),
    )
    for phase, peaks in real.items():
        for index in (0, 1):
            assert found[phase].get(index, 0) == pytest.approx(peaks[index], abs=SMALL, rel=0.001)


def test_the_model_is_left_as_it_was() -> None:
    model: Any = built("llama")
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    devices = {parameter.device for parameter in model.parameters()}
    record_run(model, list(blocks_of(model)), run_of(inputs("llama", 1, 8), STEPS, {"use_cache": True}))
    assert before == {name: set(vars(module)) for name, module in model.named_modules()}
    assert devices == {parameter.device for parameter in model.parameters()}
