"""Parts that the host runs in short steps and that are fetched in longer ones: where they run, and what crosses for it, as priced."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import planner
from planner.devices.machine import Machine
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import Rate
from planner.plans.timing import TimedPiece
from rig.accelerators import Accelerators

WIDTH, HEADS, WORDS, LONGEST, LAYERS = 64, 4, 128, 1024, 5
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "vocab_size": WORDS,
    "attn_implementation": "eager",
    "use_cache": False,
}


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=LAYERS)).eval()
    config = MixtralConfig(**SIZES, num_hidden_layers=4, num_local_experts=4, num_experts_per_tok=2)
    return MixtralForCausalLM(config).eval()


def drawn_machine(draw: random.Random) -> Machine:
    """A host that reads faster than the link brings, and computes slower than the accelerators do."""

    def device(key: int | str, memory: float, flops: float) -> MachineDevice:
        return MachineDevice(
            id=key,
            kind="cpu" if key == "cpu" else "virtual",
            memory_bytes_per_s=Rate.of_user(round(10**memory)),
            flops_per_s={"float32": Rate.of_user(round(10**flops))},
            launch_ps=Rate.of_user(1_000),
        )

    host = device("cpu", draw.uniform(8.6, 9.3), draw.uniform(8.5, 10.0))
    link = draw.uniform(7.4, 8.3)
    links = tuple(
        Link(source="cpu", to=key, bytes_per_s=Rate.of_user(round(10**link)), latency_ps=Rate.of_user(10_000))
        for key in (0, 1)
    )
    return Machine(
        devices=(device(0, draw.uniform(9.6, 10.2), 12), device(1, draw.uniform(9.6, 10.2), 12), host),
        links=links,
    )


def drawn(model: nn.Module, seed: int) -> tuple[planner.Plan, Machine]:
    """A plan of one token with a part whose limit lies below the longest step that is run here; one by one by a seed."""
    draw = random.Random(seed)
    size = sum(each.nbytes for each in model.parameters())
    while True:
        machine = drawn_machine(draw)
        budgets = {
            0: int(size * draw.uniform(0.35, 0.7)),
            1: int(size * draw.uniform(0.0, 0.5)),
            "cpu": 2 * size,
        }
        kind, order = draw.choice(("latency", "throughput")), draw.choice(("given", "any"))
        plan = planner.plan(
            model,
            max_memory=budgets,
            headroom=None,
            machine=machine,
            granularity="part",
            staging_blocks=draw.choice((1, 2)),
            strategy={"type": kind, "order": order, "tokens": 1},
        )  # type: ignore[call-overload, unused-ignore]
        if any(1 < steps.tokens < LONGEST for steps in plan.device_map.host_steps.values()):
            return plan, machine


def ids(tokens: int) -> torch.Tensor:
    return (torch.arange(tokens) % WORDS)[None]


@contextmanager
def seen_devices(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """By name of a module, the type of device on which it computes."""
    found: dict[str, str] = {}

    def watch(name: str, module: nn.Module) -> Any:
        if not list(module.children()):
            # The head or a norm: its result stays where it was computed.
            return module.register_forward_hook(
                lambda _, __, output: found.update({name: output.device.type})
            )
        inner = next(module.children())  # the first of a MLP's, or what experts in one tensor go through
        return inner.register_forward_pre_hook(lambda _, args: found.update({name: args[0].device.type}))

    handles = [watch(name, model.get_submodule(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def activation_peak(accelerators: Accelerators, model: nn.Module, tokens: int) -> int:
    """What a step takes beside weights where all of it is on one accelerator."""
    planner.dispatch(model, {"": 0})
    accelerators.reset()
    before = accelerators.used_bytes(0)
    with torch.no_grad():
        model(ids(tokens).to(accelerators.devices[0]))
    peak = accelerators.peak_bytes(0) - before
    planner.undispatch(model)
    return peak


def crossings_of(pieces: Sequence[TimedPiece]) -> Iterator[tuple[int | str, int | str]]:
    runners = [
        "cpu" if piece.way == "beside" else piece.device for piece in pieces if "rotary" not in piece.name
    ]
    for source, to in pairwise(runners):
        if source != to:
            yield source, to


def bytes_of(plan: planner.Plan, name: str) -> int:
    """A piece's: of attention, also what else is left in its layer."""
    if not name.endswith("self_attn"):
        return plan.block_bytes[name]
    assert plan.timing is not None
    layer, pieces = name.removesuffix("self_attn"), {piece.name for piece in plan.timing.pieces}
    rest = {key: size for key, size in plan.block_bytes.items() if key.startswith(layer)}
    return sum(size for key, size in rest.items() if key == name or key not in pieces)


def cuts_of(pieces: Sequence[TimedPiece], sized: set[str]) -> int:
    """How many layers are on two devices, those aside whose part is one that goes by the size of the step."""
    pairs = [
        (one, other)
        for one, other in pairwise(pieces)
        if ".layers." in one.name and one.name.split(".")[:3] == other.name.split(".")[:3]
    ]
    return sum(one.device != other.device and not {one.name, other.name} & sized for one, other in pairs)


def assert_beside(size_bytes: int, tokens: int, most_bytes: int) -> None:
    """That bytes are masks, each of which crosses as a whole, and not too much beside."""
    mask_bytes = tokens * tokens * 4
    assert size_bytes >= 0
    assert any(0 <= size_bytes - count * mask_bytes <= most_bytes for count in range(2 * LAYERS)), (
        size_bytes,
        tokens,
        most_bytes,
    )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.sweep)])
def test_short_steps_run_on_the_host_and_longer_ones_where_the_layer_does(
    virtual_accelerators: Accelerators, kind: str, seed: int
) -> None:
    model = model_of(kind)
    plan, machine = drawn(model, seed)
    limits = {name: steps.tokens for name, steps in plan.device_map.host_steps.items()}
    edges = sorted(
        {1, LONGEST, *(min(n, LONGEST) for n in limits.values())}
        | {min(n + 1, LONGEST) for n in limits.values()}
    )
    with torch.no_grad():
        wanted = {tokens: model(ids(tokens)).logits for tokens in edges}
    beside = {tokens: activation_peak(virtual_accelerators, model, tokens) for tokens in edges}
    rows = {row.id: row for row in plan.devices}
    planner.dispatch(model, plan)
    for tokens in [*edges, 1]:
        priced = planner.price(
            model,
            plan,
            tokens=tokens,
            machine=machine,
            staging_blocks=int(plan.settings["staging_blocks"].value),
        )
        fetched = {piece.name for piece in priced.pieces if piece.way == "fetched"}
        assert {name for name in limits if name in fetched} == {
            name for name, most in limits.items() if tokens > most
        }
        virtual_accelerators.reset()
        with torch.no_grad(), seen_devices(model, list(limits)) as seen:
            logits = model(ids(tokens)).logits
        assert torch.equal(logits.cpu(), wanted[tokens])
        assert seen == {name: "virtual" if tokens > most else "cpu" for name, most in limits.items()}
        traffic = virtual_accelerators.traffic()
        crossed = list(crossings_of(priced.pieces))
        activation_bytes = tokens * WIDTH * 4
        up = sum(1 for source, to in crossed if source == "cpu") * activation_bytes
        down = sum(1 for source, to in crossed if to == "cpu") * activation_bytes
        weights = sum(bytes_of(plan, name) for name in fetched)
        # Once a forward and device: tables of rotation, positions; what a router says; the result.
        tables = 4 * (2 * tokens * (WIDTH // HEADS) * 4 + 2 * tokens * 8 + 2 * WIDTH // HEADS)
        routes = 2 * tokens * (8 + 4) * len(crossed) if kind == "mixtral" else 0
        # A layer that is cut passes its residual, and to each of its norms and back.
        residuals = 4 * cuts_of(priced.pieces, set(limits)) * activation_bytes
        beyond = tables + routes + residuals
        assert_beside(traffic.to_device_bytes - weights - up, tokens, beyond)
        assert_beside(traffic.to_host_bytes - down, tokens, beyond + tokens * WORDS * 4 + 64)
        for index in (0, 1):
            row = rows[index]
            assert (
                virtual_accelerators.peak_bytes(index)
                <= row.used_bytes + row.reserved_bytes + row.buffer_bytes + 2 * beside[tokens] + tables
            ), (index, tokens)
    planner.undispatch(model)
    with torch.no_grad():
        assert torch.equal(model(ids(1)).logits, wanted[1])
    assert all(virtual_accelerators.used_bytes(index) == 0 for index in (0, 1))


@pytest.mark.usefixtures("one_thread")
def test_threads_with_steps_of_both_lengths_and_lack_of_memory_leave_nothing(
    virtual_accelerators: Accelerators,
) -> None:
    model = model_of("llama")
    plan, _ = drawn(model, 0)
    most = min(steps.tokens for steps in plan.device_map.host_steps.values())
    with torch.no_grad():
        wanted = {tokens: model(ids(tokens)).logits for tokens in (1, most + 1)}
    planner.dispatch(model, planner.Plan.from_json(plan.to_json()))
    used = [virtual_accelerators.used_bytes(index) for index in (0, 1)]

    def runs(tokens: int) -> bool:
        with torch.no_grad():
            return torch.equal(model(ids(tokens)).logits.cpu(), wanted[tokens])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(runs, [*wanted] * 4))
    failed = 0
    for allocations in range(0, 60, 6):
        try:
            with virtual_accelerators.out_of_memory_after(0, allocations):
                runs(most + 1)
        except torch.OutOfMemoryError:
            failed += 1
        gc.collect()
        assert [virtual_accelerators.used_bytes(index) for index in (0, 1)] == used
    assert failed
    assert all(map(runs, wanted))
