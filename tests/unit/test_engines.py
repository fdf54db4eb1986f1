"""Plans for engines: whole layers, ends with the first and the last of them, ties at both, and no better plan of that kind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import planner
from planner.devices.table_machine import Host, machine_of_cards
from planner.errors import InfeasibleError, InvalidConstraintError, InvalidInputError
from planner.strategies.timed import solve_table
from small_llamas import size_of

MACHINE = machine_of_cards(
    {0: "H100 80GB SXM", 1: "RTX 3090", 2: "L4"}, Host(memory_bytes_per_s=5 * 10**10, flops_per_s=10**12)
)
TIED = ("lm_head.weight", "model.embed_tokens.weight")


def llama(*, tied: bool, layers: int = 6, vocab: int = 2000) -> nn.Module:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_attention_heads=4,
        num_hidden_layers=layers,
        vocab_size=vocab,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def planned(model: nn.Module, budgets: dict[Any, int], **more: Any) -> planner.Plan:
    settings: dict[str, Any] = {"strategy": "throughput", "engine": "vllm", "machine": MACHINE, **more}
    return planner.plan(model, max_memory=budgets, **settings)


def test_a_tied_head_is_at_both_ends_and_counts_twice() -> None:
    tied, apart = llama(tied=True), llama(tied=False)
    room = dict.fromkeys(range(3), size_of(apart))
    plan, other = planned(tied, room), planned(apart, room)
    assert plan.source.total_bytes == other.source.total_bytes == size_of(apart)
    assert plan.device_map == other.device_map and plan.timing == other.timing
    assert plan.device_map["model.embed_tokens"] != plan.device_map["lm_head"]
    assert any(all(name in note for name in TIED) for note in plan.source.notes)
    assert planned(tied, room, engine=None).source.total_bytes == size_of(tied)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.62, 0.8, 2.0])
def test_no_cut_between_layers_has_a_shorter_longest_stage(tied: bool, share: float) -> None:
    model = llama(tied=tied)
    whole = planned(model, dict.fromkeys(range(3), 10**9))
    assert whole.timing is not None
    sizes = dict(whole.block_bytes)
    budgets = dict.fromkeys(range(3), int(whole.source.total_bytes * share))
    times = {key: one_stage(model, key) for key in range(3)}
    names = list(sizes)
    first, last = names.index("model.layers.0"), names.index("model.layers.5")
    best = None
    for cuts in itertools.combinations_with_replacement(range(7), 2):
        borders = [
            0,
            *(0 if cut == 0 else len(names) if cut == 6 else first + cut for cut in cuts),
            len(names),
        ]
        stages = [names[borders[at] : borders[at + 1]] for at in range(3)]
        if all(sum(sizes[name] for name in stage) <= budgets[at] for at, stage in enumerate(stages)):
            longest = max(sum(times[at][name] for name in stage) for at, stage in enumerate(stages))
            best = longest if best is None else min(best, longest)
    assert last - first == 5
    if best is None:
        with pytest.raises(InfeasibleError):
            planned(model, budgets)
        return
    timing = planned(model, budgets).timing
    assert timing is not None and timing.proven and timing.bottleneck_ps == best


def one_stage(model: nn.Module, device: int) -> dict[str, int]:
    """By block, what it takes on a device that has all of the model."""
    timing = planned(model, {device: 10**9}).timing
    assert timing is not None
    return {piece.name: piece.run_ps for piece in timing.pieces}


@pytest.mark.parametrize("objective", ["latency", "throughput", "pipeline"])
def test_pieces_that_may_not_be_parted_are_as_one(objective: str) -> None:
    """Of pieces that stay where they run, closing borders and adding up what lies between open ones come to the same."""
    rng, compared = Random(objective), 0
    for _ in range(400):
        kinds, count = rng.randint(1, 3), rng.randint(1, 9)
        pieces = [
            {"bits": rng.randint(0, 9), "run": [rng.randint(1, 20) for _ in range(kinds)]}
            for _ in range(count)
        ]
        closed = [at for at in range(1, count) if rng.random() < 0.5]
        open_ones = [0, *(at for at in range(1, count) if at not in closed), count]
        joined = [
            {
                "bits": sum(each["bits"] for each in pieces[low:high]),  # type: ignore[misc]
                "run": [sum(each["run"][kind] for each in pieces[low:high]) for kind in range(kinds)],  # type: ignore[index]
            }
            for low, high in itertools.pairwise(open_ones)
        ]
        table = {
            "objective": objective,
            "batches": rng.randint(1, 4) if objective == "pipeline" else 1,
            "any": rng.random() < 0.5,
            "kinds": [{"cap": rng.randint(5, 60)} for _ in range(kinds)],
            "devices": [rng.randrange(kinds) for _ in range(rng.randint(1, 4))],
            "hop": [[rng.randint(0, 5) for _ in range(kinds)] for _ in range(kinds)],
        }
        values = []
        for more in ({"pieces": pieces, "closed": closed}, {"pieces": joined}):
            try:
                answer = solve_table({**table, **more})
            except InfeasibleError:
                values.append(None)
                continue
            assert answer.proven
            values.append(answer.value_ps)
            if "closed" in more:
                assert not {run.first for run in answer.runs} & set(closed)
        assert values[0] == values[1]
        compared += values[0] is not None
    assert compared > 200


def test_nothing_is_offloaded_whatever_budgets_there_are() -> None:
    model = llama(tied=False)
    size = size_of(model)
    room: dict[Any, int] = {0: size // 3, 1: size // 3, "cpu": 5 * size, "disk": 5 * size}
    with pytest.raises(InfeasibleError, match="as the engine has them"):
        planned(model, room)
    assert planned(model, room, engine="llama_cpp").device_map["model.embed_tokens"] == "cpu"


def test_the_host_has_the_first_layers_for_llama_cpp() -> None:
    model = llama(tied=False)
    size = size_of(model)
    plan = planned(model, {0: size // 3, 1: size // 3, "cpu": 5 * size}, engine="llama_cpp")
    assert plan.timing is not None and plan.timing.stages[0].device == "cpu"
    assert {piece.way for piece in plan.timing.pieces} == {"resident"}
    with pytest.raises(InvalidInputError, match="'cpu': '64GiB'"):
        planned(model, {0: size, 1: size}, engine="llama_cpp")
    with pytest.raises(InvalidConstraintError, match=r"may lie nowhere|embed_tokens"):
        planned(model, {0: size, 1: size, "cpu": size}, engine="llama_cpp", pin={"model.embed_tokens": 0})


def test_pins_of_layers_are_kept() -> None:
    model = llama(tied=False)
    size = size_of(model)
    plan = planned(model, {0: size, 1: size, 2: size}, pin={"model.layers.1": 1, "model.layers.4": 2})
    assert (plan.device_map["model.layers.1"], plan.device_map["model.layers.4"]) == (1, 2)


def test_what_no_engine_can_do_is_refused_before_anything_is_planned() -> None:
    with pytest.raises(InvalidInputError, match="tie_word_embeddings=False"):
        planned(llama(tied=True), {0: 10**9}, engine="torchtitan")
    with pytest.raises(InvalidInputError, match="strategy='throughput'"):
        planner.plan(llama(tied=False), max_memory={0: 10**9}, engine="vllm")
    shared = llama(tied=False)
    shared.model.layers[1].mlp = shared.model.layers[0].mlp
    with pytest.raises(InvalidConstraintError, match="cannot share it"):
        planned(shared, {0: 10**9, 1: 10**9})


def every_plan(table: dict[str, Any]) -> Iterator[int]:
    """What each plan of a serial table comes to: every cut at open borders, and every way of each piece."""
    pieces, kinds, host = table["pieces"], table["kinds"], len(table["kinds"]) - 1
    count, devices = len(pieces), table["devices"]
    for cuts in itertools.combinations_with_replacement(range(count + 1), len(devices) - 1):
        if set(cuts) & set(table["closed"]):
            continue
        runs = [
            (kind, range(low, high))
            for kind, (low, high) in zip(devices, itertools.pairwise((0, *cuts, count)), strict=True)
            if high > low
        ]
        for ways in itertools.product(("resident", "fetched", "beside"), repeat=count):
            times = [one_run(pieces, kinds, host, kind, own, ways) for kind, own in runs]
            known = [each for each in times if each is not None]
            if len(known) == len(times):
                hops = sum(table["hop"][a][b] for (a, _), (b, _) in itertools.pairwise(runs))
                yield sum(known) + hops if table["objective"] == "latency" else max(known, default=0)


def one_run(pieces: Any, kinds: Any, host: int, kind: int, own: range, ways: Any) -> int | None:
    took, room, largest = 0, 0, 0
    for at in own:
        piece, way = pieces[at], ways[at]
        if way == "resident":
            if kind not in piece["homes"]:
                return None
            took, room = took + piece["run"][kind], room + piece["bits"] + piece["state"]
        elif kind == host or host not in piece["homes"]:
            return None
        elif way == "fetched":
            took, room = took + piece["run"][kind] + piece["fetch"][kind], room + piece["state"]
            largest = max(largest, piece["bits"])
        elif piece["state"]:
            return None
        else:
            took += piece["host"] + kinds[kind]["aside"]
    return took if room + largest <= kinds[kind]["cap"] else None


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_borders_stay_closed_whatever_lies_on_the_host(objective: str) -> None:
    rng, found = Random(objective), 0
    for _ in range(250):
        cards, count = rng.randint(1, 2), rng.randint(1, 5)
        kinds = cards + 1
        table = {
            "objective": objective,
            "kinds": [
                *({"cap": rng.randint(0, 30), "aside": rng.randint(0, 6)} for _ in range(cards)),
                {"cap": rng.randint(0, 60), "host": True},
            ],
            "devices": [cards, *range(cards)],
            "hop": [[rng.randint(0, 5) for _ in range(kinds)] for _ in range(kinds)],
            "pieces": [
                {
                    "bits": rng.randint(0, 12),
                    "state": rng.choice([0, rng.randint(1, 3)]),
                    "homes": sorted(rng.sample(range(kinds), rng.randint(1, kinds))),
                    "run": [rng.randint(1, 20) for _ in range(kinds)],
                    "fetch": [rng.randint(1, 30) for _ in range(kinds)],
                    "host": rng.randint(1, 30),
                }
                for _ in range(count)
            ],
            "closed": [at for at in range(1, count) if rng.random() < 0.5],
        }
        best = min(every_plan(table), default=None)
        try:
            answer = solve_table(table)
        except InfeasibleError:
            assert best is None
            continue
        assert (answer.value_ps, answer.proven) == (best, True)
        found += 1
    assert found > 80
