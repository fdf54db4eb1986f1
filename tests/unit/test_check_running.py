"""Maps held against what running takes: a plan's own numbers, and maps that are written by hand."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

import planner
from planner import InfeasibleError, InvalidInputError
from planner.checker.described import model_from_sizes
from planner.memory.demands import BlockDemand, Demands
from planner.planning.margins import margin_bytes

NEEDS = Demands(
    blocks={
        "a": BlockDemand(cache_bytes=4, lasting_bytes=1, needs_bytes=10),
        "b": BlockDemand(cache_bytes=5, needs_bytes=7, resting_bytes=20),
    },
    shared_bytes=2,
)
MODEL = model_from_sizes({"a.weight": 100, "b.weight": 50})


def findings(device_map: Any, budgets: Any, **said: Any) -> list[tuple[Any, Any]]:
    found = planner.check(MODEL, device_map, budgets, running=NEEDS, **said)
    return [(each.device, each.needed_bytes) for each in found if each.rule == "no-room-to-run"]


def test_a_device_needs_what_its_blocks_keep_and_the_most_that_one_needs() -> None:
    whole = 150 + 4 + 1 + 5 + 10 + 2
    assert findings({"": 0}, {0: whole}) == []
    assert findings({"": 0}, {0: whole - 1}) == [(0, whole)]
    assert findings({"a": 0, "b": 1}, {0: 117, 1: 64}) == []
    assert findings({"a": 0, "b": 1}, {0: 116, 1: 63}) == [(0, 117), (1, 64)]
    assert findings({"": 0}, None) == []


def test_weights_that_do_not_fit_are_said_once() -> None:
    found = planner.check(MODEL, {"": 0}, {0: 149}, running=NEEDS)
    assert [each.rule for each in found] == ["over-budget"]


def test_what_is_offloaded_is_brought_to_where_it_runs() -> None:
    """On the first accelerator; or where the execution map says, and without an entry where it lies."""
    budgets = {0: 100 + 50 + 4 + 1 + 5 + 10 + 2, "cpu": 70}
    assert findings({"a": 0, "b": "cpu"}, budgets) == []
    assert findings({"a": 0, "b": "cpu"}, {**budgets, 0: 171}) == [(0, 172)]
    assert findings({"a": 0, "b": "cpu"}, {**budgets, "cpu": 69}) == [("cpu", 70)]
    on_cpu = {0: 117, "cpu": 50 + 5 + 7 + 2 + 20}
    assert findings({"a": 0, "b": "cpu"}, on_cpu, execution_map={}) == []
    assert findings({"a": 0, "b": "cpu"}, {0: 116, "cpu": 83}, execution_map={}) == [(0, 117), ("cpu", 84)]
    elsewhere = {"a": 0, "b": "disk"}
    assert findings(elsewhere, {0: 117, 1: 64}, execution_map={"b": 1}) == []
    assert findings(elsewhere, {0: 117, 1: 63}, execution_map={"b": 1}) == [(1, 64)]


def test_a_cpu_where_nothing_lies_has_what_rests() -> None:
    assert findings({"": 0}, {0: 1000, "cpu": 20}) == []
    assert findings({"": 0}, {0: 1000, "cpu": 19}) == [("cpu", 20)]


def test_the_margin_is_the_callers() -> None:
    share = lambda device, size: size if device == 0 else 0  # noqa: E731
    assert findings({"": 0}, {0: 172 + 22}, margin=share) == []
    assert findings({"": 0}, {0: 172 + 21}, margin=share) == [(0, 194)]


def test_a_divided_block_counts_on_each_of_its_devices() -> None:
    model = model_from_sizes({"a.x": 1, "a.y": 2, "b.weight": 3})
    found = planner.check(model, {"a.x": 0, "a.y": 1, "b": 1}, {0: 1, 1: 5}, running=NEEDS)
    assert {each.device: each.needed_bytes for each in found if each.rule == "no-room-to-run"} == {
        0: 18,
        1: 27,
    }


def test_what_ties_weights_runs_under_each_of_its_names() -> None:
    """A head that is the embedding once more computes all the same."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    head = BlockDemand(cache_bytes=3, lasting_bytes=5, needs_bytes=50)
    needs = Demands(blocks={"0": BlockDemand(needs_bytes=7), "1": head}, shared_bytes=0)

    def needed(device_map: Any, budgets: Any) -> dict[Any, float | None]:
        found = planner.check(model, device_map, budgets, running=needs)
        return {each.device: each.needed_bytes for each in found if each.rule == "no-room-to-run"}

    whole = 16 + 3 + 5 + 50
    assert needed({"": 0}, {0: whole}) == {}
    assert needed({"": 0}, {0: whole - 1}) == {0: whole}
    assert needed({"0": 0, "1": 1}, {0: 22, 1: whole - 1}) == {0: 16 + 7, 1: whole}
    assert needed({"": "cpu"}, {"cpu": whole - 1}) == {"cpu": whole}


@pytest.mark.parametrize("wrong", [3, "words", {"blocks": {}}, SimpleNamespace(blocks=[], shared_bytes=1)])
def test_needs_that_are_none(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"running is what planner\.demands"):
        planner.check(MODEL, {"": 0}, running=wrong)


def test_needs_of_another_model() -> None:
    with pytest.raises(InvalidInputError, match="it is that of another"):
        planner.check(model_from_sizes({"c.weight": 1}), {"": 0}, {0: 10}, running=NEEDS)


@pytest.fixture(scope="module")
def llama() -> Any:
    pytest.importorskip("transformers")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "vocab_size": 128}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


SHARES = [{0: 1.0}, {0: 0.8, 1: 0.8}, {0: 0.85, "cpu": 2.0}, {0: 0.7, 1: 0.7, "cpu": 2.0}, {"cpu": 2.0}]


@pytest.mark.parametrize("cache", ["dynamic", "offloaded"])
@pytest.mark.parametrize("margin", [0, 1000, "25%"])
def test_the_checker_counts_what_plans_count(llama: Any, margin: int | str, cache: str) -> None:
    """Each device needs what the plan says, to the byte: with that budget the map is right, with less it is not."""
    work = {"context_length": 512, "allocator_margin": margin, "cache": cache}
    tried = 0
    whole = planner.plan(llama, max_memory={0: 1 << 40}, headroom=None, workload=work).devices[0].taken_bytes
    for shares in SHARES:
        budgets: dict[Any, int] = {device: int(share * whole) for device, share in shares.items()}
        try:
            plan = planner.plan(llama, max_memory=budgets, headroom=None, workload=work)
        except InfeasibleError:
            continue
        tried += 1
        said: dict[str, Any] = {
            "running": plan.demands,
            "execution_map": plan.execution_map,
            "margin": partial(margin_bytes, said=margin),
        }
        assert planner.check(llama, plan.device_map, budgets, **said) == ()
        for device in plan.devices:
            needed = device.taken_bytes - _beyond(plan, device)
            if not device.running_bytes:
                continue
            enough = {**budgets, device.id: needed}
            assert planner.check(llama, plan.device_map, enough, **said) == (), device
            (short,) = planner.check(llama, plan.device_map, {**enough, device.id: needed - 1}, **said)
            assert (short.rule, short.device, short.needed_bytes) == (
                "no-room-to-run",
                device.id,
                needed,
            )
    assert tried >= 4


@pytest.mark.parametrize("offload_buffers", [False, True])
@pytest.mark.parametrize("are_saved", [False, True])
def test_buffers_of_offloaded_blocks_stay_where_these_run(are_saved: bool, offload_buffers: bool) -> None:
    """All of them together, where weights are brought in one block after the other; unless they rest, too."""
    torch = pytest.importorskip("torch")

    class Masked(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))
            self.register_buffer("mask", torch.zeros(5), persistent=are_saved)

    model = torch.nn.Sequential(Masked(), Masked(), Masked())
    needs = Demands(blocks={str(index): BlockDemand(needs_bytes=7) for index in range(3)}, shared_bytes=0)
    described = model_from_sizes(
        {f"{index}.{name}": size for index in range(3) for name, size in (("weight", 8), ("mask", 20))},
        buffers=[f"{index}.mask" for index in range(3)],
        unsaved=[] if are_saved else [f"{index}.mask" for index in range(3)],
    )
    streamed = are_saved and offload_buffers
    whole = 28 + 7 + (28 if streamed else 8 + 2 * 20)
    for judged in (model, described):
        for budget, expected in ((whole, []), (whole - 1, [(0, whole)])):
            found = planner.check(
                judged,
                {"0": 0, "1": "cpu", "2": "cpu"},
                {0: budget},
                running=needs,
                offload_buffers=offload_buffers,
            )
            assert [(each.device, each.needed_bytes) for each in found] == expected


@pytest.fixture(scope="module")
def gpt_neo() -> Any:
    pytest.importorskip("transformers")
    import torch
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    with torch.device("meta"):
        config = GPTNeoConfig(
            hidden_size=32,
            num_layers=8,
            num_heads=4,
            vocab_size=64,
            max_position_embeddings=1024,
            attention_types=[[["global", "local"], 4]],
        )
        return GPTNeoForCausalLM(config)


@pytest.mark.parametrize("offload_buffers", [False, True])
def test_masks_of_offloaded_layers_count_where_they_run(gpt_neo: Any, offload_buffers: bool) -> None:
    """Each layer of GPT-Neo has a mask of a megabyte that no checkpoint has."""
    plan = planner.plan(
        gpt_neo,
        max_memory={0: 1 << 26, "cpu": 1 << 26},
        headroom=None,
        pin={"transformer.h.*": "cpu"},
        workload={"context_length": 8, "allocator_margin": 0},
        offload_buffers=offload_buffers,
    )
    device = plan.devices[0]
    assert device.buffer_bytes >= 8 * 1024 * 1024
    needed = device.taken_bytes - _beyond(plan, device)
    said = {"running": plan.demands, "execution_map": plan.execution_map, "offload_buffers": offload_buffers}
    assert planner.check(gpt_neo, plan.device_map, {0: needed}, **said) == ()
    (short,) = planner.check(gpt_neo, plan.device_map, {0: needed - 1}, **said)
    assert (short.device, short.needed_bytes) == (0, needed)
    assert "of buffers of blocks that are brought in" in str(short)


def _beyond(plan: planner.Plan, device: Any) -> int:
    """What a replay of the plan's placement has found above the sum of its blocks, with its margin."""
    from planner.plans.running import running_by_device

    assert plan.demands is not None
    running = running_by_device(plan.demands, plan.device_map, plan.execution_map).get(device.id)
    summed = 0 if running is None else running.cache_bytes + running.activation_bytes
    summed += plan.demands.resting_bytes if device.id == "cpu" else 0
    said = plan.settings["workload.allocator_margin"].value
    return int(device.running_bytes) - summed - (margin_bytes(device.id, summed, said) if running else 0)


def test_demands_are_those_of_a_plan(llama: Any) -> None:
    work = {"context_length": 64, "batch_size": 3}
    plan = planner.plan(llama, max_memory={0: 1 << 30}, workload=work)
    found = planner.demands(llama, workload=work)
    assert (found.blocks, found.shared_bytes) == (plan.demands.blocks, plan.demands.shared_bytes)
    with pytest.raises(InvalidInputError, match="demands needs a workload"):
        planner.demands(llama)
