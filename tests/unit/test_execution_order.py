"""In which order a plan by time takes blocks, which of them are of one layer, and what passes where a layer is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from planner.devices.machine import Machine
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import Rate
from planner.model.execution_order import callers_of, execution_order
from planner.planning.line_problem import planned_line
from planner.planning.pricing import price
from planner.planning.problem import Problem

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "num_hidden_layers": 2,
}


def machine() -> Machine:
    rate = Rate.of_user(10**9)
    devices = tuple(
        MachineDevice(id=key, kind=kind, memory_bytes_per_s=rate, flops_per_s={"float32": rate})
        for key, kind in ((0, "cuda"), (1, "cuda"), ("cpu", "cpu"))
    )
    links = [Link(source="cpu", to=key, bytes_per_s=Rate.of_user(10**8 * (key + 1))) for key in (0, 1)]
    return Machine(devices=devices, links=tuple(links))


def problem(model: nn.Module) -> Problem:
    settings = {"max_memory": {0: 10**9, 1: 10**9, "cpu": 10**9}, "machine": machine(), "strategy": "latency"}
    return Problem.of(model, None, settings, None)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**SIZES))


def test_tables_of_rotation_follow_the_embedding(model: nn.Module) -> None:
    blocks = problem(model).blocks()
    names = [blocks.block_names[number][0] for number in execution_order(blocks)]
    assert names[:3] == ["model.embed_tokens", "model.rotary_emb", "model.layers.0"]
    assert sorted(names) == sorted(names[0] for names in blocks.block_names)


def test_parts_are_called_by_the_rest_of_their_layer(model: nn.Module) -> None:
    found = problem(model)
    blocks = found.blocks(in_parts=True)
    names = [names[0] for names in blocks.block_names]
    callers = callers_of(blocks, found.layers())
    said = {name: names[callers[number]] for number, name in enumerate(names)}
    assert said["model.layers.1.mlp"] == "model.layers.1.self_attn"
    assert all(name == caller for name, caller in said.items() if not name.endswith("mlp"))
    assert list(callers_of(found.blocks(), found.layers())) == list(range(found.blocks().block_count))


def test_a_layer_that_is_cut_passes_three_activations(model: nn.Module) -> None:
    found = problem(model)
    line = planned_line(found, found.blocks(in_parts=True))
    passes = {names[0]: passes for names, passes in zip(line.names, line.passes, strict=True)}
    assert passes["model.layers.0.mlp"] == (2, 1)
    assert passes["model.layers.1.self_attn"] == passes["lm_head"] == (1, 0)


@pytest.mark.parametrize(
    ("apart", "hops"),
    [
        ({}, [(0, 1)]),
        ({"model.layers.0.mlp": 1}, [(0, 1), (1, 0), (0, 1)]),
        ({"model.layers.1.mlp": 0}, [(0, 1), (1, 0), (0, 1)]),
        ({"model.layers.1.mlp": "cpu"}, [(0, 1), (1, "cpu"), ("cpu", 1)]),
    ],
    ids=str,
)
def test_a_price_counts_every_activation_that_crosses(
    model: nn.Module, apart: dict[str, int | str], hops: list[tuple[int | str, int | str]]
) -> None:
    whole = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0, "model": 1, "lm_head": 1}
    found = price(model, {**whole, **apart}, execution_map=dict(apart), machine=machine())
    line = planned_line(problem(model), problem(model).blocks())
    assert found.latency_ps == sum(stage.ps for stage in found.stages) + sum(
        line.hop_ps(*hop) for hop in hops
    )
