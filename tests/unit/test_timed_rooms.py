"""Plans by time where rooms are odd: hosts smaller than what a search would leave there, disks alone, cards in pairs, nothing to run."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations
from typing import Any

import pytest
from torch import nn

import planner
from planner.devices.machine import Machine
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import Rate
from planner.model.work import Experts
from planner.planning.pricing import price
from small_llamas import llama, size_of


def link(source: int | str, to: int | str, rate: int) -> Link:
    return Link(source=source, to=to, is_pinned=source != "disk", bytes_per_s=Rate.of_user(rate))


def machine(*rates: int, host: int = 10**7, links: tuple[Link, ...] = ()) -> Machine:
    """Accelerators with so many bytes a second, close to a host that computes slowly."""
    by_key: dict[int | str, int] = {**dict(enumerate(rates)), "cpu": host}
    devices = [
        MachineDevice(
            id=key,
            kind="cpu" if key == "cpu" else "cuda",
            memory_bytes_per_s=Rate.of_user(rate),
            flops_per_s={"float32": Rate.of_user(10**15)},
        )
        for key, rate in by_key.items()
    ]
    to_host = [link("cpu", key, 10**12) for key in range(len(rates))]
    return Machine(devices=tuple(devices), links=(*to_host, link("disk", "cpu", 10**7), *links))


def planned(
    net: nn.Module, budgets: dict[Any, int], kind: str = "latency", *, order: str = "given", **more: Any
) -> planner.Plan:
    more.setdefault("machine", machine(10**9, 10**8))
    strategy: Any = {"type": kind, "order": order}
    return planner.plan(net, max_memory=budgets, headroom=None, strategy=strategy, **more)


@pytest.mark.parametrize("kind", ["latency", "throughput", "pipeline"])
@pytest.mark.parametrize("with_disk", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.5])
def test_a_small_host_leaves_other_plans(kind: str, with_disk: bool, share: float) -> None:
    """The link is fast, so that a search alone would leave more on the host than there is room for; a slower card has room."""
    model = llama(4)
    size = size_of(model)
    budgets: dict[Any, int] = {0: size // 2, 1: size, "cpu": int(size * share)}
    if with_disk:
        budgets["disk"] = 9 * size
    plan = planned(model, budgets, kind)
    assert plan.timing is not None
    slow = price(model, {"": 1}, machine=machine(10**9, 10**8))
    slow_ps = {
        "latency": slow.latency_ps,
        "throughput": slow.bottleneck_ps,
        "pipeline": slow.latency_ps + 3 * slow.bottleneck_ps,
    }
    assert plan.timing.lower_bound_ps <= plan.timing.value_ps <= slow_ps[kind]
    for each in plan.devices:
        assert each.free_bytes is not None and each.free_bytes >= 0
    if share == 0.5 and kind == "latency":
        assert plan.timing.value_ps < slow_ps[kind] * 3 // 4
        assert {piece.way for piece in plan.timing.pieces} == {"resident", "fetched"}


def test_what_must_lie_on_the_cpu_does_not_lie_on_the_disk() -> None:
    model = llama(4)
    size = size_of(model)
    pinned = "model.layers.3"
    budgets = {0: size // 3, "cpu": size // 3, "disk": 9 * size}
    plan = planned(model, budgets, pin={pinned: "cpu"}, machine=machine(10**9))
    homes = {plan.device_map[name] for name in plan.device_map if name.startswith(pinned)}
    assert homes == {"cpu"}
    assert "disk" in plan.device_map.values()


def test_what_must_lie_on_the_disk_is_brought_in_from_there() -> None:
    model = llama(4)
    budgets = {0: 2 * size_of(model), "cpu": 2 * size_of(model), "disk": 2 * size_of(model)}
    plan = planned(model, budgets, pin={"model.layers.3": "disk"}, machine=machine(10**9))
    assert plan.timing is not None
    for piece in plan.timing.pieces:
        assert (piece.way == "fetched") == piece.name.startswith("model.layers.3")
    assert price(model, plan, machine=machine(10**9)).latency_ps == plan.timing.latency_ps


def test_a_disk_alone_is_fetched_from() -> None:
    model = llama(4)
    plan = planned(model, {0: size_of(model) // 2, "disk": 9 * size_of(model)}, machine=machine(10**9))
    assert plan.timing is not None and plan.timing.proven
    assert {*plan.device_map.values()} == {0, "disk"}
    with pytest.raises(planner.InfeasibleError):
        planned(model, {0: size_of(model) // 2, "disk": 10**9}, machine=machine(10**9), mode="no_disk")


@pytest.mark.parametrize("kind", ["latency", "throughput", "pipeline"])
def test_a_host_alone_brings_in_from_the_disk_what_it_has_no_room_for(kind: str) -> None:
    model = llama(4)
    size = size_of(model)
    plan = planned(model, {"cpu": size // 2, "disk": 9 * size}, kind, machine=machine())
    assert plan.timing is not None
    assert {*plan.device_map.values()} == {"cpu", "disk"}
    assert {*plan.execution_map.values()} == {"cpu"}
    assert plan.timing.proven
    fits = planned(model, {"cpu": 2 * size, "disk": 9 * size}, kind, machine=machine())
    assert {*fits.device_map.values()} == {"cpu"}


def test_a_mode_without_disk_leaves_nothing_there() -> None:
    model = llama(4)
    budgets = {0: size_of(model) // 2, 1: size_of(model), "cpu": size_of(model) // 10, "disk": 10**9}
    assert "disk" not in planned(model, budgets, mode="no_disk").device_map.values()


def test_tied_tensors_go_to_the_disk_together() -> None:
    model = llama(4, tied=True)
    size = size_of(model)
    for share in (0.0, 0.05, 0.2, 0.5):
        plan = planned(
            model, {0: size // 3, "cpu": int(size * share), "disk": 9 * size}, machine=machine(10**9)
        )
        assert plan.device_map["model.embed_tokens"] == plan.device_map["lm_head"]


def test_cards_in_bridged_pairs_are_no_one_kind() -> None:
    """Sorted, the hops of all four are alike; which card is at the other end is not."""
    pairs = {frozenset((0, 1)), frozenset((2, 3))}
    links = [
        link(source, to, 10**9 if frozenset((source, to)) in pairs else 10**5)
        for source, to in permutations(range(4), 2)
    ]
    cards = machine(*(10**9,) * 4, links=tuple(links))
    model = llama(3)
    budgets = dict.fromkeys(range(4), int(size_of(model) * 0.7))
    plan = planned(model, budgets, machine=cards)
    assert plan.timing is not None and plan.timing.proven
    assert plan.timing.latency_ps == price(model, plan, machine=cards).latency_ps
    best = min(
        price(model, {"model": one, "model.layers.2": other, "lm_head": other}, machine=cards).latency_ps
        for one, other in combinations(range(4), 2)
    )
    assert plan.timing.latency_ps <= best


@pytest.mark.parametrize("kind", ["throughput", "pipeline"])
@pytest.mark.parametrize(
    "kept", [{}, {"keep_together": [["model.layers.0.mlp", "model.layers.1.mlp"]]}], ids=str
)
@pytest.mark.parametrize("share", [0, 2, 4])
def test_no_device_works_longer_than_the_busiest(kind: str, kept: dict[str, Any], share: int) -> None:
    """Also for the runs of others: a card without room has nothing of its own to run."""
    model = llama(2)
    size = size_of(model)
    plan = planned(
        model,
        {0: share * size // 2, 1: share * size // 2, "cpu": 0 if share else 2 * size},
        kind,
        order="any",
        **kept,
    )
    timing = plan.timing
    assert timing is not None
    busy: Counter[Any] = Counter()
    for piece in timing.pieces:
        home = next(
            device
            for name, device in plan.device_map.items()
            if name == "" or f"{piece.name}.".startswith(f"{name}.")
        )
        busy["cpu" if piece.way == "beside" else home if piece.way == "tied" else piece.device] += (
            piece.run_ps
        )
    assert max(busy.values()) <= timing.bottleneck_ps
    assert timing.lower_bound_ps <= timing.value_ps


def test_a_model_without_tensors_takes_no_time() -> None:
    plan = planned(nn.Sequential(nn.ReLU()), {0: 0, "cpu": 0}, model={"hidden_size": 8})
    assert plan.timing is not None
    assert (plan.timing.value_ps, plan.timing.stages) == (0, ())


def test_endlessly_many_tokens_meet_every_expert() -> None:
    experts = Experts(count=128, chosen=8)
    assert experts.touched(10**12, 2**53) == 10**12
    for tokens in (1, 128 * 7, 128 * 7 + 1, 5000):
        size = 100
        assert experts.touched(size, tokens) == size - size * 120**tokens // 128**tokens
