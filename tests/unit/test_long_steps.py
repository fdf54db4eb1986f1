"""Parts that the host runs in short steps: up to how many tokens, by what a pricer says, and with room for the longer ones."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import planner
from planner.devices.machine import Machine
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import Rate
from planner.planning.long_steps import MOST_TOKENS, first_above
from planner.plans.device_map import DeviceMap, HostSteps

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "dtype": "float32",
}


def model_of(kind: str) -> nn.Module:
    with torch.device("meta"):
        if kind == "llama":
            return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=3))
        return MixtralForCausalLM(
            MixtralConfig(**SIZES, num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=1)
        )


def drawn_machine(draw: random.Random, *, is_measured: bool) -> Machine:
    """Rates of any size; of the host and of the card, where measured, products in a table, which need not make sense."""

    def rate(low: float, high: float) -> Rate:
        return Rate.of_user(round(10 ** draw.uniform(low, high)))

    def device(key: int | str, low: float) -> MachineDevice:
        table = {1: rate(low, low + 1), 8: rate(low - 0.7, low + 0.7), 32: rate(low - 1, low + 0.5)}
        return MachineDevice(
            id=key,
            kind="cpu" if key == "cpu" else "cuda",
            memory_bytes_per_s=rate(low, low + 1),
            flops_per_s={"float32": rate(low + 0.5, low + 2)},
            weights_bytes_per_s={"float32": table} if is_measured else {},
            launch_ps=rate(3, 6),
        )

    link = Link(source="cpu", to=0, bytes_per_s=rate(7.3, 8.3), latency_ps=rate(3, 7))
    return Machine(devices=(device(0, 9.5), device("cpu", 8.3)), links=(link,))


def planned(model: nn.Module, machine: Machine, **more: Any) -> planner.Plan:
    size = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    settings: dict[str, Any] = {
        "max_memory": {0: int(size * more.pop("share", 0.55)), "cpu": 2 * size},
        "machine": machine,
        "headroom": None,
        "granularity": "part",
        **more,
    }
    # So small a model runs best in two stretches, one of them on the host.
    asked = {"type": "latency", "order": "any", "long_steps": "fetch_all"}
    settings["strategy"] = {**asked, **more.get("strategy", {})}
    return planner.plan(model, **settings)


def parts_of(plan: planner.Plan) -> dict[str, int | None]:
    assert plan.timing is not None
    return {piece.name: piece.host_up_to_tokens for piece in plan.timing.pieces if piece.way == "beside"}


@pytest.mark.parametrize("is_measured", [False, True])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_the_limit_is_where_a_map_that_fetches_gets_cheaper(kind: str, is_measured: bool) -> None:
    """By two maps written by hand, which differ in who runs the part, at every number of tokens."""
    model, draw, seen = model_of(kind), random.Random(7), 0
    for _ in range(60):
        machine, tokens = drawn_machine(draw, is_measured=is_measured), draw.choice((1, 4))
        plan = planned(model, machine, strategy={"tokens": tokens})
        limits = {name: most for name, most in parts_of(plan).items() if name.endswith(("mlp", "experts"))}
        if not any(most is not None and tokens < most < 120 for most in limits.values()):
            continue
        seen += 1
        if seen > 3:
            return
        name, most = next((name, most) for name, most in limits.items() if most is not None)
        by_hand = dict.fromkeys(plan.block_bytes, 0) | {name: "cpu"}

        def takes(
            step: int, runner: int | str, by_hand: Any = by_hand, name: str = name, machine: Any = machine
        ) -> int:
            return planner.price(
                model, by_hand, tokens=step, machine=machine, execution_map={name: runner}
            ).latency_ps

        for step in range(tokens, most + 1, max(1, most // 12)):
            assert takes(step, "cpu") <= takes(step, 0), step
        assert takes(most, "cpu") <= takes(most, 0)
        assert takes(most + 1, "cpu") > takes(most + 1, 0)
    pytest.fail(f"{seen} plans with a limit among 60 draws")


def test_the_least_number_at_which_one_time_is_more_than_another() -> None:
    draw = random.Random(3)
    for _ in range(400):
        count, steepness = draw.randint(1, 60), draw.choice((1, 3, 20))
        one, other = (
            list(
                itertools.accumulate(draw.choice((0, 0, 1, draw.randint(0, steepness))) for _ in range(count))
            )
            for _ in range(2)
        )
        start = draw.randint(0, steepness * 10)
        expected = next((at for at in range(count) if one[at] > other[at] + start), None)
        assert first_above(one.__getitem__, lambda at, o=other, s=start: o[at] + s, 0, count - 1) == expected


def test_what_is_told_where_there_are_too_many_looks_is_on_the_safe_side() -> None:
    """The two are equal for a million tokens, and one is above at the end."""
    found = first_above(lambda at: at + (at == 10**6), lambda at: at, 0, 10**6)
    assert found is not None
    assert found <= 10**6


@pytest.mark.parametrize("staging_blocks", [1, 2])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_room_for_longer_steps_is_kept_where_they_run(kind: str, staging_blocks: int) -> None:
    model, draw, seen = model_of(kind), random.Random(11), 0
    for _ in range(30):
        machine = drawn_machine(draw, is_measured=False)
        asked = {"staging_blocks": staging_blocks, "share": 0.9 if kind == "mixtral" else 0.7}
        plan = planned(model, machine, **asked)
        assert plan.timing is not None
        largest: dict[Any, int] = {}
        for piece in plan.timing.pieces:
            if piece.host_up_to_tokens is not None:
                largest[piece.device] = max(largest.get(piece.device, 0), plan.block_bytes[piece.name])
        for row in plan.devices:
            assert row.reserved_bytes >= staging_blocks * largest.get(row.id, 0)
            assert row.free_bytes is None or row.free_bytes >= 0
        seen += bool(largest)
        values = []
        for word in ("fetch", "host"):
            other = planned(model, machine, **asked, strategy={"long_steps": word})
            assert other.timing is not None
            values.append(other.timing.value_ps)
        assert not other.device_map.host_steps
        assert values[1] <= values[0] <= plan.timing.value_ps
    assert seen > 5


def test_room_that_costs_a_step_too_much_is_not_kept() -> None:
    """Beside a mixture's attention there is no room for its experts: none is kept, and the host always runs them."""
    model, draw, without = model_of("mixtral"), random.Random(4), 0
    for _ in range(20):
        machine = drawn_machine(draw, is_measured=False)
        fetch, host = (
            planned(model, machine, share=0.2, strategy={"long_steps": word}) for word in ("fetch", "host")
        )
        assert fetch.timing is not None
        assert host.timing is not None
        assert 10 * fetch.timing.value_ps <= 11 * host.timing.value_ps
        without += bool(parts_of(fetch)) and not fetch.device_map.host_steps
    assert without


def test_room_for_longer_steps_makes_no_plan_worse_than_those_of_auto() -> None:
    model, draw, dearer = model_of("llama"), random.Random(6), 0
    for number in range(20):
        machine, share = drawn_machine(draw, is_measured=False), draw.uniform(0.2, 0.8)
        fetch, host = (
            planned(model, machine, share=share, strategy={"long_steps": word}) for word in ("fetch", "host")
        )
        budgets = {device.id: device.budget_bytes for device in fetch.devices}
        assert fetch.timing is not None
        assert host.timing is not None
        for execute in ("accelerator", "cpu"):
            auto = planner.plan(model, max_memory=budgets, headroom=None, execute_offloaded=execute)  # type: ignore[arg-type]
            least_ps = planner.price(model, auto, machine=machine, tokens=1).latency_ps
            assert fetch.timing.value_ps <= least_ps, number
        dearer += fetch.timing.value_ps > host.timing.value_ps
    assert dearer  # else no room was kept that costs anything


def a_plan() -> tuple[nn.Module, planner.Plan, Machine]:
    model, draw = model_of("llama"), random.Random(5)
    for _ in range(60):
        machine = drawn_machine(draw, is_measured=False)
        plan = planned(model, machine)
        if any(1 < steps.tokens < 1_000 for steps in plan.device_map.host_steps.values()):
            return model, plan, machine
    raise AssertionError("no plan with a limit among 60 draws")


def test_the_same_plan_is_priced_by_who_runs_it_in_each_step() -> None:
    model, plan, machine = a_plan()
    limits = {name: steps.tokens for name, steps in plan.device_map.host_steps.items()}
    for tokens in (1, *limits.values(), max(limits.values()) + 1, 4_096):
        for said in (plan, plan.device_map):
            timing = planner.price(model, said, tokens=tokens, machine=machine)
            ways = {piece.name: (piece.way, piece.device) for piece in timing.pieces}
            for name, most in limits.items():
                short = ("beside", 0) if said is plan else ("resident", "cpu")
                assert ways[name] == (short if tokens <= most else ("fetched", 0))


def test_it_is_in_the_file_and_in_words() -> None:
    _, plan, _ = a_plan()
    assert plan.timing is not None
    data = json.loads(plan.to_json())
    said = {row["name"]: row["host_up_to_tokens"] for row in data["timing"]["pieces"]}
    again = planner.Plan.from_json(plan.to_json())
    assert again == plan
    assert again.device_map.host_steps == plan.device_map.host_steps
    for name, steps in plan.device_map.host_steps.items():
        assert said[name] == steps.tokens
        assert f"up to {steps.tokens} token" in planner.explain(plan, name)
    assert "brought in in steps of more than" in plan.summary()
    for row in data["timing"]["pieces"]:
        del row["host_up_to_tokens"]
    earlier = planner.Plan.from_json(json.dumps(data))
    assert not earlier.device_map.host_steps


def mlps_of(plan: planner.Plan) -> dict[str, int | None]:
    return {name: most for name, most in parts_of(plan).items() if name.endswith("mlp")}


def with_workload(model: nn.Module, machine: Machine, context_length: int) -> planner.Plan:
    """A plan with a part that the host runs: caches and activations take room, and so small a model has little of its own."""
    workload = {"context_length": context_length, "allocator_margin": 0}
    for share in range(60, 200, 5):
        try:
            plan = planned(model, machine, share=share / 100, workload=workload)
        except planner.InfeasibleError:
            continue
        if mlps_of(plan):
            return plan
    raise AssertionError("no plan with an MLP on the host")


def test_with_a_workload_the_longest_step_is_the_prompt() -> None:
    """Where the host is faster even for that, no room is kept."""
    model, plan, machine = a_plan()
    (most,) = {most for most in mlps_of(plan).values() if most is not None}
    short, long = (with_workload(model, machine, length) for length in (most, most + 1))
    assert set(mlps_of(short).values()) == {None}
    assert set(mlps_of(long).values()) == {most}


def test_a_checker_finds_room_for_long_steps() -> None:
    model, plan, machine = a_plan()
    most = max(steps.tokens for steps in plan.device_map.host_steps.values())
    made = with_workload(model, machine, 2 * most)
    assert made.device_map.host_steps
    budgets = {row.id: row.budget_bytes for row in made.devices if row.budget_bytes is not None}
    for tokens in (1, MOST_TOKENS):
        found = planner.check(
            model,
            made.device_map,
            budgets,
            running=made.demands,
            execution_map=made.device_map.elsewhere(tokens),
        )
        assert planner.is_valid(found), (tokens, *found)


def test_fetch_all_leaves_the_host_nothing_that_it_always_runs() -> None:
    model, draw = model_of("llama"), random.Random(2)
    for _ in range(20):
        plan = planned(model, drawn_machine(draw, is_measured=False), strategy={"long_steps": "fetch_all"})
        assert plan.timing is not None
        own = [piece.name for piece in plan.timing.pieces if piece.device == "cpu"]
        assert all("embed" in name or "rotary" in name for name in own), own


def test_maps_below_a_name_and_copies_keep_what_goes_by_size() -> None:
    device_map = DeviceMap({"model.a": 0, "model.b": "cpu"}, {}, {"model.b": HostSteps(5, 0)})
    assert device_map.copy().host_steps == device_map.host_steps
    assert device_map.below("model").host_steps == {"b": HostSteps(5, 0)}
    assert device_map.below("model.a").host_steps == {}
    assert device_map.elsewhere(6) == {"model.b": 0}
