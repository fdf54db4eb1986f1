"""What blocks read and compute in a step, and what that takes on a device."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from planner.devices.machine import Machine
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import Rate
from planner.errors import InvalidDevicesError, InvalidInputError
from planner.model.blocks import Blocks
from planner.model.layout import Layout
from planner.model.tree import ModuleTree
from planner.model.work import BlockWork, Experts, work_of
from planner.strategies.costs import fetch_ps, hop_ps, run_ps

WIDTH, VOCABULARY, LAYERS = 16, 64, 3


def rate(value: int) -> Rate:
    return Rate.of_user(value)


def blocks_of(config: object, **more: object) -> tuple[nn.Module, Blocks]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layout = Layout(ModuleTree.from_module(model), no_split=sorted(model._no_split_modules))
    return model, Blocks(layout, **more)  # type: ignore[arg-type]


def llama(*, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=tied,
        dtype="float32",
    )


def by_name(blocks: Blocks, work: tuple[BlockWork, ...]) -> dict[str, BlockWork]:
    return {names[0]: each for names, each in zip(blocks.columns.block_names(), work, strict=True)}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tokens", [1, 7])
def test_layers_are_read_whole_and_embeddings_by_the_row(tied: bool, tokens: int) -> None:
    model, blocks = blocks_of(llama(tied=tied))
    found = by_name(blocks, work_of(blocks, tokens, weight_bits=32, row_bytes=4 * WIDTH))
    layer = model.model.layers[0]
    elements = sum(parameter.numel() for parameter in layer.parameters())
    assert found["model.layers.1"] == BlockWork(
        weight_bytes=4 * elements, touched_bytes=4 * elements, flops=2 * tokens * elements, modules=9
    )
    assert found["lm_head"].modules == found["model.embed_tokens"].modules == found["model.norm"].modules == 1
    assert found["model.embed_tokens"].touched_bytes == 4 * WIDTH * tokens
    assert found["model.embed_tokens"].flops == 0
    head = found["lm_head"]
    assert head.touched_bytes == 4 * WIDTH * VOCABULARY
    assert head.flops == 2 * tokens * WIDTH * VOCABULARY
    assert head.weight_bytes == (0 if tied else 4 * WIDTH * VOCABULARY)


def test_an_embedding_is_never_read_more_than_whole() -> None:
    _, blocks = blocks_of(llama(tied=False))
    found = by_name(blocks, work_of(blocks, 10**6, weight_bits=32, row_bytes=4 * WIDTH))
    assert found["model.embed_tokens"].touched_bytes == 4 * WIDTH * VOCABULARY
    whole = by_name(blocks, work_of(blocks, 1, weight_bits=32))
    assert whole["model.embed_tokens"].touched_bytes == 4 * WIDTH * VOCABULARY


@pytest.mark.parametrize("tokens", [1, 3, 16, 1024])
def test_a_mixture_reads_the_expected_share_of_its_experts(tokens: int) -> None:
    config = MixtralConfig(
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        vocab_size=VOCABULARY,
        dtype="float32",
    )
    model, blocks = blocks_of(config)
    found = by_name(
        blocks, work_of(blocks, tokens, weight_bits=32, experts=Experts(8, 2), row_bytes=4 * WIDTH)
    )
    layer = model.model.layers[0]
    whole = sum(each.nbytes for each in layer.parameters())
    mixed = sum(each.nbytes for each in layer.mlp.experts.parameters())
    assert 0 < mixed < whole
    expected = whole - mixed + mixed * (1 - Fraction(6, 8) ** tokens)
    assert found["model.layers.0"].touched_bytes == math.ceil(expected)
    assert found["model.layers.0"].flops == 2 * tokens * (whole - mixed + mixed // 4) // 4


def test_experts_apart_are_pieces_of_their_own() -> None:
    config = MixtralConfig(
        hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=1, vocab_size=VOCABULARY, dtype="float32",
    )  # fmt: skip
    model, blocks = blocks_of(config, apart=["model.layers.0.mlp"])
    work = work_of(blocks, 1, weight_bits=32, experts=Experts(4, 1))
    found = by_name(blocks, work)
    experts = sum(each.nbytes for each in model.model.layers[0].mlp.experts.parameters())
    router = model.model.layers[0].mlp.gate.weight.nbytes
    assert found["model.layers.0.mlp"].touched_bytes == router + experts // 4
    assert sum(each.weight_bytes for each in work) == sum(each.nbytes for each in model.parameters()) + sum(
        each.nbytes for each in model.buffers()
    )


def test_shares_of_experts_are_exact_in_whole_numbers() -> None:
    draw = random.Random(0)
    for _ in range(200):
        count = draw.randint(1, 300)
        experts, tokens = Experts(count, draw.randint(1, count)), draw.randint(1, 300)
        size = draw.randint(0, 1 << 40)
        exact = size * (1 - (1 - Fraction(experts.chosen, count)) ** tokens)
        assert experts.touched(size, tokens) == math.ceil(exact)


CARD = MachineDevice(
    id=0,
    kind="cuda",
    memory_bytes_per_s=rate(10**12),
    flops_per_s={"bfloat16": rate(10**14), "float32": rate(10**13)},
    launch_ps=rate(1000),
)


def work(size: int, flops: int) -> BlockWork:
    return BlockWork(weight_bytes=size, touched_bytes=size, flops=flops)


def test_a_run_is_the_longer_of_reading_and_computing() -> None:
    assert run_ps(CARD, work(500, 100), dtype="bfloat16", tokens=1) == 500 + 1000
    assert run_ps(CARD, work(500, 10**6), dtype="bfloat16", tokens=1) == 10**4 + 1000
    assert run_ps(CARD, work(500, 10**6), dtype="float16", tokens=1) == 10**5 + 1000  # as float32
    assert run_ps(CARD, work(500, 0), dtype="bfloat16", tokens=1, state_bytes=300) == 800 + 1000
    assert run_ps(CARD, work(1, 1), dtype="bfloat16", tokens=1, state_flops=10**6 - 1) == 10**4 + 1000


def test_products_that_were_measured_count_before_memory() -> None:
    rates = {"bfloat16": {1: rate(4 * 10**9), 16: rate(10**9), 128: rate(10**9 // 4)}}
    host = MachineDevice(id="cpu", kind="cpu", memory_bytes_per_s=rate(10**10), weights_bytes_per_s=rates)
    seconds = [
        run_ps(host, work(4 * 10**9, 0), dtype="bfloat16", tokens=tokens) / 1e12
        for tokens in (1, 16, 128, 256)
    ]
    assert seconds == [1, 4, 16, 32]
    between = [run_ps(host, work(4 * 10**9, 0), dtype="bfloat16", tokens=tokens) for tokens in range(1, 300)]
    assert between == sorted(between)
    assert run_ps(host, work(4 * 10**9, 0), dtype="bfloat16", tokens=1, state_bytes=10**10) == 2 * 10**12


def test_a_rate_that_is_not_known_names_the_device_and_the_command() -> None:
    bare = MachineDevice(id=3, kind="cuda", name="NVIDIA L4")
    with pytest.raises(
        InvalidDevicesError, match=r"memory_bytes_per_s of device 3 \(NVIDIA L4\).*planner probe --out"
    ) as caught:
        run_ps(bare, work(1, 1), dtype="bfloat16", tokens=1)
    assert caught.value.device == 3
    slow = MachineDevice(id=3, kind="cuda", memory_bytes_per_s=rate(1))
    with pytest.raises(InvalidDevicesError, match="flops_per_s of bfloat16"):
        run_ps(slow, work(1, 1), dtype="bfloat16", tokens=1)


def test_fetches_come_over_their_link_and_from_the_disk_at_the_slower_of_both() -> None:
    devices = (CARD, MachineDevice(id="cpu", kind="cpu"))
    links = (
        Link(source="cpu", to=0, bytes_per_s=rate(10**10), latency_ps=rate(7)),
        Link(source="disk", to="cpu", is_pinned=False, bytes_per_s=rate(10**9)),
    )
    machine = Machine(devices=devices, links=links)
    assert fetch_ps(machine, 0, 10**10, home="cpu") == 10**12 + 7
    assert fetch_ps(machine, 0, 10**9, home="disk") == 10**12
    assert fetch_ps(machine, "cpu", 10**9, home="cpu") == 0
    assert hop_ps(machine, 0, "cpu", 10**10) == 10**12 + 7
    with pytest.raises(InvalidInputError, match="no rate from disk to 0"):
        fetch_ps(Machine(devices=devices, links=links[:1]), 0, 1, home="disk")
