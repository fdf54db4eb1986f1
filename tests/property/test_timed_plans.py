"""Plans by time of drawn tables against a pricer that shares nothing with the core, and against other plans of the same table."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from planner.errors import InfeasibleError
from planner.strategies.timed import LineAnswer, solve_table

Table = dict[str, Any]


def draw(rng: Random) -> Table:
    """Up to 14 pieces of few sorts on up to four devices, most of which lack room for them."""
    accelerators = rng.randint(1, 3)
    kinds = accelerators + 1
    sorts = [draw_piece(rng, kinds) for _ in range(rng.randint(1, 4))]
    pieces = [rng.choice(sorts) for _ in range(rng.randint(1, 14))]
    total = sum(piece["bits"] + piece["state"] for piece in pieces)
    overlap = rng.random() < 0.5
    devices = [rng.randrange(accelerators) for _ in range(rng.randint(0, 3))]
    if rng.random() < 0.5 or not devices:
        devices.insert(rng.randint(0, len(devices)), accelerators)
    return {
        "objective": rng.choice(["latency", "throughput", "pipeline"]),
        "batches": rng.randint(1, 9),
        "any": rng.random() < 0.4,
        "overlap": overlap,
        "staging": rng.choice([0, 1, 2]),
        "kinds": [
            *({"cap": rng.randint(0, total), "aside": rng.randint(0, 9)} for _ in range(accelerators)),
            {"cap": rng.randint(0, 2 * total), "host": True},
        ],
        "devices": devices,
        "hop": [[rng.randint(0, 9) for _ in range(kinds)] for _ in range(kinds)],
        "pieces": pieces,
    }


def draw_piece(rng: Random, kinds: int) -> Table:
    bits = rng.randint(0, 40)
    state = rng.choice([0, 0, rng.randint(1, 9)])
    return {
        "bits": bits,
        "state": state,
        "streamed": bits,
        "homes": list(range(kinds))
        if rng.random() < 0.8
        else rng.sample(range(kinds), rng.randint(1, kinds)),
        "run": [rng.randint(1, 30) if rng.random() < 0.95 else None for _ in range(kinds)],
        "fetch": [rng.randint(1, 60) if rng.random() < 0.9 else None for _ in range(kinds)],
        "host": rng.randint(5, 90) if rng.random() < 0.7 else None,
        "beside": [bits if rng.random() < 0.4 else 0 for _ in range(kinds)],
        "passes": rng.choice([(1, 0), (1, 0), (2, 1), (3, 2)]),
    }


def value_of(table: Table, answer: LineAnswer) -> int:
    """What the plan takes by its runs and ways alone; fails where it breaks a rule."""
    host = next(number for number, kind in enumerate(table["kinds"]) if kind.get("host"))
    last: int | None = None
    latency = longest = border = 0
    used: list[int] = []
    for run in answer.runs:
        assert run.first == border < run.end
        assert run.device not in used
        assert table["any"] or not used or run.device > used[-1]
        used.append(run.device)
        kind = table["devices"][run.device]
        room = run_ps = fetch_ps = largest = 0
        for piece, way in zip(table["pieces"][run.first : run.end], run.ways, strict=True):
            if way == "resident":
                assert kind in piece["homes"]
                run_ps += piece["run"][kind]
                room += piece["bits"] + piece["state"]
                continue
            assert kind != host
            assert host in piece["homes"]
            if way == "fetched":
                run_ps += piece["run"][kind]
                fetch_ps += piece["fetch"][kind]
                room += piece["state"]
                largest = max(largest, piece["streamed"])
            else:
                assert piece["state"] == 0
                run_ps += piece["host"] + table["kinds"][kind]["aside"]
                largest = max(largest, piece["beside"][kind])
        assert room + table["staging"] * largest <= table["kinds"][kind]["cap"]
        ps = max(run_ps, fetch_ps) if table["overlap"] else run_ps + fetch_ps
        assert ps == run.ps
        on, back = table["pieces"][run.first]["passes"]
        assert last != host or back == 0  # a layer that is cut runs from an accelerator
        hops = 0 if last is None else on * table["hop"][last][kind] + back * table["hop"][kind][last]
        latency += ps + hops
        longest = max(longest, ps)
        last, border = kind, run.end
    assert border == len(table["pieces"])
    assert (latency, longest) == (answer.latency_ps, answer.bottleneck_ps)
    batches: int = table["batches"]
    by_objective = {
        "latency": latency,
        "throughput": longest,
        "pipeline": latency + (batches - 1) * longest,
    }
    return by_objective[table["objective"]]


def solved(table: Table) -> LineAnswer | None:
    try:
        return solve_table(table)
    except InfeasibleError as error:
        assert error.is_proven
        return None


@pytest.mark.parametrize("seed", range(8))
def test_every_plan_is_what_it_says(seed: int) -> None:
    rng = Random(seed)
    feasible = 0
    for _ in range(60):
        table = draw(rng)
        answer = solved(table)
        if answer is None:
            continue
        feasible += 1
        assert value_of(table, answer) == answer.value_ps
        assert answer.proven
        assert answer == solve_table(table)
    assert feasible >= 15


@pytest.mark.parametrize("seed", range(4))
def test_objectives_order_plans_and_more_room_never_hurts(seed: int) -> None:
    """The plan of least latency has the least latency, and so on; and what a table may more, it uses only where that is better."""
    rng = Random(1000 + seed)
    compared = 0
    for _ in range(40):
        table = draw(rng) | {"batches": 4}
        answers = {
            each: solved(table | {"objective": each}) for each in ("latency", "throughput", "pipeline")
        }
        latency, throughput, pipeline = answers.values()
        assert len({answer is None for answer in answers.values()}) == 1
        if latency is None or throughput is None or pipeline is None:
            continue
        compared += 1
        assert latency.latency_ps <= min(throughput.latency_ps, pipeline.latency_ps)
        assert throughput.bottleneck_ps <= min(latency.bottleneck_ps, pipeline.bottleneck_ps)
        for other in (latency, throughput):
            assert pipeline.value_ps <= other.latency_ps + 3 * other.bottleneck_ps
        roomier = [kind | {"cap": kind["cap"] + rng.randint(0, 20)} for kind in table["kinds"]]
        better = solved(table | {"objective": "latency", "kinds": roomier})
        assert better is not None
        assert better.value_ps <= latency.value_ps
        any_order = solved(table | {"objective": "latency", "any": True})
        assert any_order is not None
        assert any_order.value_ps <= latency.value_ps
    assert compared >= 10
