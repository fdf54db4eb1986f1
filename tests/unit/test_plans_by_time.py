"""`plan()` by time: what it says of a step is what an independent pricer says, and no placement in the same form is faster."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import planner
from planner.devices.machine import Machine
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import Rate
from planner.planning.pricing import price
from planner.settings.keywords import PlanSettings
from small_llamas import size_of

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "dtype": "float32",
}
FAST, SLOW, HOST = (10**9, 10**12), (4 * 10**8, 4 * 10**11), (5 * 10**7, 10**10)


def llama(layers: int = 3, *, tied: bool = False) -> nn.Module:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=layers, tie_word_embeddings=tied))


def mixtral(layers: int = 2) -> nn.Module:
    config = MixtralConfig(**SIZES, num_hidden_layers=layers, num_local_experts=4, num_experts_per_tok=1)
    with torch.device("meta"):
        return MixtralForCausalLM(config)


def device(key: int | str, rates: tuple[int, int]) -> MachineDevice:
    memory, flops = rates
    return MachineDevice(
        id=key,
        kind="cpu" if key == "cpu" else "cuda",
        memory_bytes_per_s=Rate.of_user(memory),
        flops_per_s={"float32": Rate.of_user(flops)},
        launch_ps=Rate.of_user(1_000_000),
    )


def machine(*, link: int = 10**8, host: tuple[int, int] = HOST) -> Machine:
    links = [
        Link(source="cpu", to=key, bytes_per_s=Rate.of_user(link), latency_ps=Rate.of_user(2_000_000))
        for key in (0, 1)
    ]
    disk = Link(source="disk", to="cpu", is_pinned=False, bytes_per_s=Rate.of_user(10**7))
    return Machine(devices=(device(0, FAST), device(1, SLOW), device("cpu", host)), links=(*links, disk))


def planned(model: nn.Module, share: tuple[float, float], kind: str = "latency", **more: Any) -> planner.Plan:
    size = size_of(model)
    budgets = {0: int(size * share[0]), 1: int(size * share[1]), "cpu": 2 * size}
    strategy = {"type": kind, **more.pop("strategy", {})}
    settings: PlanSettings = {"max_memory": budgets, "machine": machine(), "headroom": None, **more}  # type: ignore[typeddict-item]
    return planner.plan(model, strategy=strategy, **settings)  # type: ignore[misc]


SHARES = [(2.0, 2.0), (0.6, 0.6), (0.5, 0.2), (0.3, 0.3), (0.0, 0.4)]


@pytest.mark.parametrize("share", SHARES, ids=str)
@pytest.mark.parametrize("kind", ["latency", "throughput", "pipeline"])
@pytest.mark.parametrize("make", [llama, mixtral])
def test_a_plan_keeps_within_its_budgets_and_says_of_itself_what_a_pricer_says(
    share: tuple[float, float], kind: str, make: Any
) -> None:
    model = make()
    plan = planned(model, share, kind)
    timing = plan.timing
    assert timing is not None
    assert timing.lower_bound_ps <= timing.value_ps
    for each in plan.devices:
        assert each.budget_bytes is not None and each.free_bytes is not None
        assert (
            each.used_bytes + each.reserved_bytes + each.buffer_bytes + each.free_bytes == each.budget_bytes
        )
    budgets = {each.id: each.budget_bytes for each in plan.devices}
    assert planner.is_valid(planner.check(model, plan.device_map, max_memory=budgets))
    priced = price(model, plan, machine=machine())
    assert priced.latency_ps == timing.latency_ps
    if all(piece.way != "beside" for piece in timing.pieces):  # these have a stage of their own there
        assert [stage.ps for stage in priced.stages] == [stage.ps for stage in timing.stages]
        assert priced.bottleneck_ps == timing.bottleneck_ps
    assert planner.Plan.from_json(plan.to_json()) == plan
    assert planner.Plan.from_json(plan.to_json()).timing == timing
    assert any(line.startswith("modelled: ") for line in plan.summary().splitlines())


def blocks_of(model: nn.Module) -> list[str]:
    """Whole layers, in the order of execution: tables of rotation are made of what the embedding gives."""
    plan = planner.plan(model, max_memory={0: 2 * size_of(model)})
    first, *others = plan.block_bytes
    return [first, *sorted(others, key=lambda name: "rotary" not in name)]


def every_placement(
    model: nn.Module, budgets: Mapping[int | str, int]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each device one stretch, in the order given; inside an accelerator's, each block resident or fetched; what fits."""
    names, sizes = blocks_of(model), planner.plan(model, max_memory={0: 2 * size_of(model)}).block_bytes
    devices = [0, 1, "cpu"]
    count = len(names)
    for cuts in itertools.combinations_with_replacement(range(count + 1), len(devices) - 1):
        bounds = (0, *cuts, count)
        stretch = [devices[at] for at in range(len(devices)) for _ in range(bounds[at], bounds[at + 1])]
        accelerated = [number for number, where in enumerate(stretch) if where != "cpu"]
        for fetched in itertools.product((False, True), repeat=len(accelerated)):
            away = {number for number, is_fetched in zip(accelerated, fetched, strict=True) if is_fetched}
            used = dict.fromkeys(devices, 0)
            largest = dict.fromkeys(devices, 0)
            for number, name in enumerate(names):
                home = "cpu" if number in away else stretch[number]
                used[home] += sizes[name]
                if number in away:
                    largest[stretch[number]] = max(largest[stretch[number]], sizes[name])
            if all(used[each] + largest[each] <= budgets[each] for each in devices):
                homes = {
                    name: "cpu" if number in away else stretch[number] for number, name in enumerate(names)
                }
                yield homes, {names[number]: stretch[number] for number in away}


@pytest.mark.parametrize("share", SHARES[1:], ids=str)
@pytest.mark.parametrize("kind", ["latency", "throughput"])
def test_no_placement_of_whole_layers_is_faster(share: tuple[float, float], kind: str) -> None:
    model = llama(2)
    size = size_of(model)
    budgets = {0: int(size * share[0]), 1: int(size * share[1]), "cpu": 2 * size}
    strategy = {"parts": False} if kind == "latency" else {}
    plan = planned(model, share, kind, strategy=strategy, forbid=None or {})
    assert plan.timing is not None and plan.timing.proven
    best = min(
        getattr(
            price(model, homes, execution_map=runs, machine=machine()),
            "latency_ps" if kind == "latency" else "bottleneck_ps",
        )
        for homes, runs in every_placement(model, budgets)
    )
    # Blocks that keep nothing may also run on the host from within a stretch, which these have not.
    assert plan.timing.value_ps <= best
    if all(piece.way != "beside" for piece in plan.timing.pieces):
        assert plan.timing.value_ps == best


@pytest.mark.parametrize("tokens", [1, 16, 1024])
@pytest.mark.parametrize("share", SHARES[1:], ids=str)
def test_latency_is_never_worse_than_auto_with_either_executor(
    share: tuple[float, float], tokens: int
) -> None:
    model = mixtral()
    size = size_of(model)
    budgets = {0: int(size * share[0]), 1: int(size * share[1]), "cpu": 2 * size}
    ours = planned(model, share, strategy={"tokens": tokens, "order": "any"}).timing
    assert ours is not None
    for execute in ("accelerator", "cpu"):
        auto = planner.plan(model, max_memory=budgets, headroom=None, execute_offloaded=execute)  # type: ignore[arg-type]
        assert ours.value_ps <= price(model, auto, machine=machine(), tokens=tokens).latency_ps


@pytest.mark.parametrize("tokens", [1, 1024])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_nor_is_it_with_a_workload(share: float, tokens: int) -> None:
    """What is needed at once comes off every device in a line, and in a plan of `auto` off those that run it."""
    model = mixtral(4)
    size, workload = size_of(model), {"context_length": 64, "batch_size": 8, "allocator_margin": 0}
    budgets = {0: int(size * share), 1: int(size * share), "cpu": 8 * size}
    settings: dict[str, Any] = {"max_memory": budgets, "headroom": None, "workload": workload}
    plan = planner.plan(
        model, machine=machine(), strategy={"type": "latency", "tokens": tokens, "order": "any"}, **settings
    )
    assert plan.timing is not None
    priced = []
    for execute in ("accelerator", "cpu"):
        try:
            auto = planner.plan(model, execute_offloaded=execute, **settings)  # type: ignore[arg-type]
        except planner.InfeasibleError:
            continue
        found = price(model, auto, machine=machine(), tokens=tokens, workload=workload).latency_ps
        priced.append((found, dict(auto.device_map)))
    assert priced
    assert plan.timing.value_ps <= min(ps for ps, _ in priced)
    for each in plan.devices:
        assert each.free_bytes is not None and each.free_bytes >= 0
    assert planner.Plan.from_json(plan.to_json()) == plan
    if plan.reasons[0].rule == "as_auto":
        assert (plan.timing.value_ps, dict(plan.device_map)) in priced
        assert "where strategy 'auto' puts it" in planner.explain(plan, "model.layers.1")
        assert plan.settings["strategy.type"].value == "latency"
    if (share, tokens) == (0.3, 1):
        assert plan.reasons[0].rule == "as_auto"


@pytest.mark.parametrize("kind", ["latency", "throughput", "pipeline"])
def test_experts_in_one_tensor_are_a_part_of_their_block_and_the_plan_says_so(kind: str) -> None:
    plan = planned(mixtral(), (0.4, 0.4), kind, granularity="expert")
    assert plan.timing is not None
    assert "model.layers.0.mlp.experts" in [piece.name for piece in plan.timing.pieces]
    said = [reason.name for reason in plan.reasons if reason.rule == "experts_as_part"]
    assert said == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    assert "one part of their block" in planner.explain(plan, "model.layers.0.mlp.experts")


def test_who_executes_depends_on_the_tokens_of_a_step() -> None:
    """One token: the host reads faster than the link brings; many: the host computes too slowly."""
    model, fast_host = llama(4), (5 * 10**8, 2 * 10**9)
    size = size_of(model)
    budgets = {0: size // 2, 1: 0, "cpu": 2 * size}
    found = {
        tokens: planner.plan(
            model, max_memory=budgets, headroom=None, machine=machine(host=fast_host),
            strategy={"type": "latency", "tokens": tokens},
        )
        for tokens in (1, 512)
    }  # fmt: skip
    ran_on_host = {
        tokens: [piece for piece in plan.timing.pieces if plan_runner(plan, piece) == "cpu"]
        for tokens, plan in found.items()
    }
    assert ran_on_host[1]
    assert not ran_on_host[512]
    assert [piece for piece in found[512].timing.pieces if piece.way == "fetched"]


def plan_runner(plan: planner.Plan, piece: Any) -> Any:
    return "cpu" if piece.way == "beside" else piece.device


def test_a_tied_head_shares_the_home_of_the_embedding() -> None:
    model = llama(tied=True)
    plan = planned(model, (0.5, 0.6))
    assert plan.timing is not None
    assert plan.device_map["model.embed_tokens"] == plan.device_map["lm_head"]
    assert sum(each.used_bytes for each in plan.devices) == size_of(model)


def test_constraints_hold() -> None:
    model = llama()
    plan = planned(model, (2.0, 2.0), pin={"model.layers.1": 1})
    assert plan.device_map["model.layers.1"] == 1
    plan = planned(model, (2.0, 2.0), forbid={"model.layers.2": [0, 1]})
    assert plan.device_map["model.layers.2"] == "cpu"
    plan = planned(model, (2.0, 2.0), mode="gpu_only")
    assert {*plan.device_map.values()} <= {0, 1}


def test_what_the_host_has_no_room_for_lies_on_the_disk() -> None:
    model = llama(6)
    size = size_of(model)
    budgets = {0: size // 3, "cpu": size // 3, "disk": size}
    plan = planner.plan(
        model, max_memory=budgets, headroom=None, strategy="latency", machine=machine(link=10**10)
    )
    by_device = {each.id: each for each in plan.devices}
    assert by_device["disk"].used_bytes > 0
    assert by_device["cpu"].used_bytes <= size // 3
    assert plan.timing is not None and not plan.timing.proven


def test_a_workload_takes_room_from_what_may_stay() -> None:
    model = llama(6)
    size = size_of(model)
    budgets = {0: int(0.8 * size), "cpu": 4 * size}
    settings: dict[str, Any] = {
        "max_memory": budgets,
        "headroom": None,
        "strategy": "latency",
        "machine": machine(),
    }
    bare = planner.plan(model, **settings)
    busy = planner.plan(model, workload={"context_length": 64, "allocator_margin": 0}, **settings)
    assert busy.devices[0].used_bytes < bare.devices[0].used_bytes
    for each in busy.devices:
        assert each.free_bytes is not None and each.free_bytes >= 0
        if each.id == 0:
            assert each.cache_bytes + each.activation_bytes > 0
    assert busy.timing is not None and bare.timing is not None
    assert busy.timing.latency_ps > bare.timing.latency_ps


def test_equal_problems_give_equal_plans_in_two_processes(tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(machine().to_json())
    code = (
        "import sys, torch, planner\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"with torch.device('meta'): model = LlamaForCausalLM(LlamaConfig(**{SIZES!r}, num_hidden_layers=3))\n"
        "plan = planner.plan(model, max_memory={0: 300_000, 1: 200_000, 'cpu': 10**7}, strategy='latency', machine=sys.argv[1])\n"
        "print(plan.to_json(provenance=False))\n"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "machine.json")],
            capture_output=True, text=True, check=True, env={**__import__("os").environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(texts) == 1
    assert json.loads(texts.pop())["timing"]["value_ps"] > 0


BAD: list[tuple[dict[str, Any], str]] = [
    ({"strategy": {"type": "latency", "tokens": 0}}, "tokens"),
    ({"strategy": {"type": "pipeline", "microbatches": 0}}, "microbatches"),
    ({"strategy": {"type": "latency", "order": "best"}}, "order"),
    ({"machine": "nowhere.json"}, "nowhere.json"),
    ({"machine": 3}, "machine"),
    ({"machine": '{"schema": "planner.machine", "version": 9}'}, "version 9"),
    ({"max_memory": {5: 10**9, "cpu": 10**9}}, "no device 5"),
]


@pytest.mark.parametrize(("wrong", "part"), BAD, ids=[part for _, part in BAD])
def test_bad_input_is_one_clear_error_before_any_search(wrong: dict[str, Any], part: str) -> None:
    settings = {"max_memory": {0: 10**9, "cpu": 10**9}, "machine": machine(), "strategy": "latency", **wrong}
    with pytest.raises(planner.InvalidInputError, match=part):
        planner.plan(llama(), **settings)


def test_a_device_without_rates_is_named_with_the_command() -> None:
    bare = Machine(
        devices=(MachineDevice(id=0, kind="cuda", name="A card"), device("cpu", HOST)),
        links=machine().links[:1],
    )
    with pytest.raises(planner.InvalidDevicesError, match=r"device 0 \(A card\).*planner probe"):
        planner.plan(llama(), max_memory={0: 10**9, "cpu": 10**9}, machine=bare, strategy="latency")


def test_a_model_that_is_nowhere_too_large_has_a_typed_error() -> None:
    with pytest.raises(planner.InfeasibleError) as caught:
        planner.plan(llama(), max_memory={0: 1000}, machine=machine(), strategy="latency")
    assert caught.value.is_proven
    assert "strategy 'auto'" in caught.value.message


def test_a_piece_is_explained_with_its_times() -> None:
    plan = planned(llama(), (0.4, 0.4))
    text = planner.explain(plan, "model.layers.1")
    assert "In a step of 1 token, modelled:" in text
    assert "accelerate" not in text
    assert "to run" in text


OPTIONS = [
    *((kind, "tokens", 64) for kind in ("latency", "throughput", "pipeline")),
    ("latency", "parts", False),
    ("pipeline", "microbatches", 9),
]


@pytest.mark.parametrize(("kind", "name", "value"), OPTIONS)
def test_every_option_reaches_the_plan(kind: str, name: str, value: Any) -> None:
    model = llama(4)
    size = size_of(model)
    turned = Machine(
        devices=(device(0, SLOW), device(1, FAST), device("cpu", HOST)), links=machine(link=10**9).links
    )
    settings: dict[str, Any] = {
        "max_memory": {0: int(0.4 * size), 1: int(0.4 * size), "cpu": 2 * size},
        "machine": turned,
        "headroom": None,
    }
    before = planner.plan(model, strategy={"type": kind}, **settings).timing
    after = planner.plan(model, strategy={"type": kind, name: value}, **settings).timing
    assert before is not None and after is not None
    assert before != after


@pytest.mark.parametrize("kind", ["latency", "throughput", "pipeline"])
def test_devices_may_follow_each_other_in_another_order(kind: str) -> None:
    settings: dict[str, Any] = {"pin": {"model.embed_tokens": 1, "lm_head": 0}, "mode": "gpu_only"}
    with pytest.raises(planner.InfeasibleError):
        planned(llama(), (2.0, 2.0), kind, **settings)
    plan = planned(llama(), (2.0, 2.0), kind, strategy={"order": "any"}, **settings)
    assert plan.timing is not None
    assert [stage.device for stage in plan.timing.stages] == [1, 0]


def test_without_steps_the_bound_is_told() -> None:
    """Parts of many sizes, so that which of them stay is a search."""
    model = mixtral(6)
    size = size_of(model)
    settings: dict[str, Any] = {
        "max_memory": {0: size // 3, 1: size // 3, "cpu": 2 * size},
        "machine": machine(),
        "headroom": None,
    }
    for kind in ("latency", "throughput", "pipeline"):
        # For longer steps a plan may take more than another in this one.
        strategy: dict[str, Any] = {"type": kind, "order": "any", "long_steps": "host"}
        whole = planner.plan(model, strategy=strategy, **settings).timing
        none = planner.plan(model, strategy={**strategy, "search_steps": 0}, **settings).timing
        assert whole is not None and none is not None
        assert none.lower_bound_ps <= whole.value_ps <= none.value_ps
        assert planner.plan(model, strategy={"type": kind}, **settings).certificate.stage == kind


STRANGE: list[tuple[dict[str, Any], str]] = [
    ({"model": 0}, "says nothing of lm_head.weight"),
    (
        {"": 0, "transformer.h.0": 1, "head": 1},
        "names transformer.h.0, head, and LlamaForCausalLM has nothing",
    ),
]


@pytest.mark.parametrize(("strange", "part"), STRANGE, ids=[part for _, part in STRANGE])
def test_a_map_of_another_model_has_no_price(strange: dict[str, Any], part: str) -> None:
    with pytest.raises(planner.PlanMismatchError, match=part):
        price(llama(), strange, machine=machine())


def test_a_plan_of_another_model_has_no_price() -> None:
    for plan in (planned(llama(5), (0.5, 0.6)), planned(mixtral(5), (0.5, 0.6))):
        with pytest.raises(planner.PlanMismatchError, match="another model"):
            price(llama(3), plan, machine=machine())


def test_a_slower_machine_gives_a_slower_plan() -> None:
    model = llama()
    budgets = {0: 2 * size_of(model), "cpu": 10**9}
    slow = Machine(devices=(device(0, SLOW), device("cpu", HOST)), links=machine().links[:1])
    timings = [
        planner.plan(model, max_memory=budgets, machine=each, strategy="latency").timing
        for each in (machine(), slow)
    ]
    assert timings[0] is not None and timings[1] is not None
    assert timings[0].latency_ps < timings[1].latency_ps
    assert timings[0].machine != timings[1].machine


WRONG: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("value_ps",), -1, "value_ps"),
    (("value_ps",), "12", "value_ps"),
    (("latency_ps",), 1.5, "latency_ps"),
    (("tokens",), True, "tokens"),
    (("speed",), 1, "speed"),
    (("pieces", 0, "run_ps"), -5, "run_ps"),
    (("pieces", 0, "mood"), "good", "mood"),
    (("pieces", 1, "name"), "transformer.h.0", "transformer.h.0"),
    (("pieces", 0, "other"), {"way": "beside"}, "ps"),
    (("stages", 0, "last"), "model.layers.99", "model.layers.99"),
    (("stages", 0, "device"), None, "device"),
]


@pytest.mark.parametrize(("path", "value", "part"), WRONG, ids=str)
def test_a_timing_that_is_none_is_refused(path: tuple[str | int, ...], value: Any, part: str) -> None:
    data = json.loads(planned(llama(), (0.5, 0.4)).to_json())
    inner: Any = data["timing"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(planner.InvalidInputError, match=part):
        planner.Plan.from_json(json.dumps(data))


def test_a_machine_may_be_what_its_file_says(tmp_path: Path) -> None:
    said, marked = json.loads(machine().to_json()), tmp_path / "machine.json"
    marked.write_text(machine().to_json(), encoding="utf-8-sig")
    settings: dict[str, Any] = {"max_memory": {0: 10**9, "cpu": 10**9}, "strategy": "latency"}
    plans = [planner.plan(llama(), machine=each, **settings) for each in (machine(), said, marked)]
    plans.append(planner.plan(llama(), config={"machine": said, **settings}))
    assert {plan.timing for plan in plans} == {plans[0].timing}
    with pytest.raises(planner.InvalidInputError, match="kindd"):
        planner.plan(llama(), machine={**said, "devices": [{"id": 0, "kindd": "cuda"}]}, **settings)


def test_plans_of_version_3_have_no_timing() -> None:
    data = json.loads(planner.plan(llama(), max_memory={0: 10**9}).to_json())
    assert data["version"] == 4
    assert "timing" not in data
    assert planner.Plan.from_json(json.dumps({**data, "version": 3})).timing is None
