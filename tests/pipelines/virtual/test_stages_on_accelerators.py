"""Stages on accelerators: everything of a stage is there, and takes what its weights take."""

from __future__ import annotations

import copy

import pytest
import torch

from pipelines.stage_models import family, forwards, whole_logits
from planner.pipelines.runs import stage_runs
from planner.pipelines.stage import Stage, prepare_stage
from rig import Accelerators


def on_accelerators(name: str, counts: tuple[int, int]) -> list[Stage]:
    runs = stage_runs(counts)
    folder = family(name).folder
    return [
        prepare_stage(folder, runs, run.index, f"virtual:{run.index}", attention="eager").read()
        for run in runs
    ]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mixtral", "opt", "mamba"])
def test_two_accelerators_give_the_logits_of_the_whole_model(
    name: str, virtual_accelerators: Accelerators
) -> None:
    stages = on_accelerators(name, (2, 3))
    for stage in stages:
        tensors = [*stage.model.parameters(), *stage.model.buffers()]
        assert {tensor.device for tensor in tensors} == {torch.device(f"virtual:{stage.index}")}
    caches = [stage.new_cache() for stage in stages]
    whole = copy.deepcopy(family(name).model).to("virtual:0")
    for (ids, mask, positions), wanted in zip(forwards(3), whole_logits(whole, 3), strict=True):
        made = ids
        for stage, cache in zip(stages, caches, strict=True):
            here = stage.device
            made = stage.forward(
                made.to(here), cache=cache, attention_mask=mask.to(here), position_ids=positions.to(here)
            )
        assert torch.equal(made.cpu(), wanted.cpu())


def test_a_stage_takes_its_weights_and_nothing_besides(virtual_accelerators: Accelerators) -> None:
    runs = stage_runs((2, 3))
    prepared = prepare_stage(family("mixtral").folder, runs, 1, "virtual:1")
    before = virtual_accelerators.used_bytes(1)
    stage = prepared.read()
    buffers = sum(buffer.nbytes for buffer in stage.model.buffers())
    assert virtual_accelerators.used_bytes(1) - before <= prepared.weight_bytes + buffers + 64 * 1024
    assert virtual_accelerators.used_bytes(0) == 0
    assert stage.read_bytes == prepared.weight_bytes
