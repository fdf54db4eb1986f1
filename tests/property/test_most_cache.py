"""The cut that gives the most tokens of cache to the stage that has fewest, against every cut there is."""

from __future__ import annotations

import itertools
from fractions import Fraction
from random import Random
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import planner
from planner.devices.table_machine import machine_of_cards
from planner.errors import InfeasibleError, InvalidInputError
from planner.strategies.line_tables import read_table
from planner.strategies.most_cache import most_tokens

TABLES = 1_200


def draw(rng: Random) -> tuple[dict[str, Any], list[int]]:
    """Pieces, some of which keep nothing, and up to four devices; and what a token keeps in each piece."""
    kinds, count = rng.randint(1, 3), rng.randint(1, 7)
    pieces = [
        {
            "bits": rng.randint(0, 30),
            "state": rng.choice([0, rng.randint(0, 5)]),
            "run": [rng.randint(1, 20) for _ in range(kinds)],
            "homes": sorted(rng.sample(range(kinds), rng.randint(1, kinds)))
            if rng.random() < 0.2
            else list(range(kinds)),
        }
        for _ in range(count)
    ]
    token_bits = [rng.choice([0, rng.randint(1, 6)]) for _ in range(count)]
    token_bits[rng.randrange(count)] = rng.randint(1, 6)
    table = {
        "objective": "throughput",
        "any": rng.random() < 0.5,
        "kinds": [{"cap": rng.randint(5, 200)} for _ in range(kinds)],
        "devices": [rng.randrange(kinds) for _ in range(rng.randint(1, 4))],
        "hop": [[0] * kinds for _ in range(kinds)],
        "pieces": pieces,
        "closed": [at for at in range(1, count) if rng.random() < 0.2],
    }
    return table, token_bits


def every_cut(table: dict[str, Any]) -> Any:
    """Each as pairs of a kind and its pieces, stages without pieces left out."""
    count, devices = len(table["pieces"]), table["devices"]
    orders = set(itertools.permutations(devices)) if table["any"] else {tuple(devices)}
    for order in orders:
        for cuts in itertools.combinations_with_replacement(range(count + 1), len(order) - 1):
            borders = (0, *cuts, count)
            if not set(cuts) & set(table["closed"]):
                yield [
                    (kind, range(low, high))
                    for kind, (low, high) in zip(order, itertools.pairwise(borders), strict=True)
                    if high > low
                ]


def value(table: dict[str, Any], token_bits: list[int], stages: Any) -> tuple[int, int] | None:
    """Tokens on the stage that has room for fewest, and the longest stage; None where weights alone have no room."""
    fewest, longest, pieces = 10**9, 0, table["pieces"]
    for kind, own in stages:
        left = table["kinds"][kind]["cap"] - sum(pieces[at]["bits"] + pieces[at]["state"] for at in own)
        if left < 0 or any(kind not in pieces[at]["homes"] for at in own):
            return None
        keeps = sum(token_bits[at] for at in own)
        fewest = min(fewest, left // keeps) if keeps else fewest
        longest = max(longest, sum(pieces[at]["run"][kind] for at in own))
    return fewest, longest


def test_no_cut_has_room_for_more_and_none_with_as_much_is_faster() -> None:
    rng, found = Random(8), 0
    for _ in range(TABLES):
        table, token_bits = draw(rng)
        values = [each for each in (value(table, token_bits, stages) for stages in every_cut(table)) if each]
        bits = [Fraction(each) for each in token_bits]
        if not values:
            with pytest.raises(InfeasibleError):
                most_tokens(read_table(table), bits)
            continue
        most = max(fewest for fewest, _ in values)
        tokens, answer = most_tokens(read_table(table), bits)
        assert tokens == most
        assert answer.value_ps == min(longest for fewest, longest in values if fewest >= most)
        assert answer.proven
        found += 1
    assert found > TABLES // 2


def test_fewer_than_asked_for_are_no_answer() -> None:
    table = {
        "objective": "throughput",
        "kinds": [{"cap": 100}],
        "devices": [0],
        "hop": [[0]],
        "pieces": [{"bits": 10, "run": [1]}] * 4,
    }
    bits = [Fraction(3, 2)] * 4
    assert most_tokens(read_table(table), bits)[0] == 10
    assert most_tokens(read_table(table), bits, least=10)[0] == 10
    with pytest.raises(InfeasibleError):
        most_tokens(read_table(table), bits, least=11)


def llama() -> Any:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=9, vocab_size=4000
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def test_a_plan_for_the_largest_cache_has_room_for_it_and_says_so() -> None:
    model, machine = llama(), machine_of_cards({0: "L4", 1: "RTX 4090", 2: "L4"})
    common: dict[str, Any] = {
        "max_memory": {0: 3_000_000, 1: 2_500_000, 2: 3_000_000},
        "machine": machine,
        "engine": "vllm",
        "workload": {"context_length": 64, "allocator_margin": 0},
    }
    fast = planner.plan(model, strategy="throughput", **common)
    large = planner.plan(model, strategy={"type": "throughput", "maximise": "cache"}, **common)
    assert fast.timing is not None and large.timing is not None and fast.timing.cache_tokens is None
    tokens = large.timing.cache_tokens
    assert tokens is not None and tokens > 64
    assert f"room for {tokens} tokens" in large.summary()
    assert planner.Plan.from_json(large.to_json()).timing == large.timing
    # What a token keeps is known: keys and values of four heads of 16 in each layer, of four bytes.
    a_token = 2 * 64 * 4
    rooms = [
        (device.free_bytes or 0) // (device.cache_bytes // 64) + 64
        for device in large.devices
        if device.cache_bytes
    ]
    assert {device.cache_bytes % (64 * a_token) for device in large.devices} == {0}
    assert (
        abs(min(rooms) - tokens) <= min(rooms) // 4
    )  # a plan counts each device's own activations, a cut the largest
    assert large.timing.bottleneck_ps >= fast.timing.bottleneck_ps


def test_without_a_workload_or_a_cache_nothing_is_known_of_tokens() -> None:
    strategy: Any = {"type": "throughput", "maximise": "cache"}
    common: dict[str, Any] = {
        "max_memory": {0: 10**9, 1: 10**9},
        "machine": machine_of_cards({0: "L4", 1: "L4"}),
        "strategy": strategy,
    }
    with pytest.raises(InvalidInputError, match="context_length"):
        planner.plan(llama(), **common)
    with pytest.raises(InvalidInputError, match="keeps nothing"):
        planner.plan(llama(), workload={"context_length": 64, "cache": "none"}, **common)
