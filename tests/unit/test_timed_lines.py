"""Plans of tables of plain numbers: what they say, and what cannot be read."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from planner.errors import InfeasibleError, InvalidInputError
from planner.strategies import timed
from planner.strategies.timed import LineAnswer, solve_table


def table(**changes: object) -> dict[str, object]:
    """Six pieces of 10 bits on a fast device of 32 and a slow one of 20, beside a host."""
    piece = {"bits": 10, "run": [2, 5, 30], "fetch": [20, 20, None], "host": 30}
    return {
        "objective": "latency",
        "kinds": [{"cap": 32, "aside": 4}, {"cap": 20, "aside": 4}, {"cap": 1_000, "host": True}],
        "devices": [0, 1],
        "hop": [[0, 3, 2], [3, 0, 2], [2, 2, 0]],
        "pieces": [piece] * 6,
    } | changes


def ends(answer: LineAnswer) -> list[tuple[int, int, int]]:
    return [(run.device, run.first, run.end) for run in answer.runs]


def test_a_plan_says_where_each_piece_lies_and_runs() -> None:
    """One piece more than the devices hold: on the host it takes 30 and the way there and back."""
    answer = solve_table(table())
    assert ends(answer) == [(0, 0, 4), (1, 4, 6)]
    assert answer.proven
    assert answer.runs[0].ways == ("resident", "resident", "resident", "beside")
    assert (answer.value_ps, answer.latency_ps, answer.bottleneck_ps) == (53, 53, 40)


def test_what_is_fetched_beside_what_runs_costs_the_longer_of_both() -> None:
    """One block of room for what is fetched leaves three of six to fetch, two leave four."""
    kinds = [{"cap": 40}, {"cap": 1_000, "host": True}]
    pieces = [{"bits": 10, "run": [25, 90], "fetch": [20, None]}] * 6
    line = table(kinds=kinds, pieces=pieces, devices=[0], hop=[[0, 0], [0, 0]])
    serial, overlapped = (solve_table(line | {"overlap": each}) for each in (False, True))
    assert (serial.value_ps, serial.runs[0].ways.count("fetched")) == (6 * 25 + 3 * 20, 3)
    assert (overlapped.value_ps, overlapped.runs[0].ways.count("fetched")) == (6 * 25, 4)


def test_any_order_may_begin_with_the_second_device() -> None:
    pieces = [{"bits": 10, "run": [9, 1, None]}] + [{"bits": 10, "run": [1, 9, None]}] * 3
    given, any_order = (solve_table(table(pieces=pieces, any=each)) for each in (False, True))
    assert ends(any_order) == [(1, 0, 1), (0, 1, 4)]
    assert any_order.value_ps == 7 < given.value_ps


def test_a_pipeline_is_worth_more_even_runs() -> None:
    pieces = [{"bits": 5, "run": [2, 4, None]}] * 6
    one, many = (solve_table(table(pieces=pieces, objective="pipeline", batches=n)) for n in (1, 50))
    assert ends(one) == [(0, 0, 6)]
    assert ends(many) == [(0, 0, 4), (1, 4, 6)]
    assert many.value_ps == many.latency_ps + 49 * many.bottleneck_ps == 19 + 49 * 8


def test_what_is_tied_has_one_home() -> None:
    """The last piece runs where the first lies, which costs two hops and no room; both on one device is more than it holds."""
    pieces = [
        {"bits": 99, "run": [2, 5, None]},
        *[{"bits": 10, "run": [2, 5, None]}] * 3,
        {"bits": 99, "run": [2, 5, None]},
    ]
    answer = solve_table(table(pieces=pieces, ties=[{"pieces": [0, 4], "bits": 10}]))
    assert ends(answer) == [(0, 0, 3), (1, 3, 5)]
    assert answer.runs[1].ways == ("resident", "tied")
    assert answer.value_ps == 3 * 2 + 3 + 5 + (2 + 3 + 3)


def test_without_steps_there_is_a_bound_and_a_plan() -> None:
    answer = solve_table(table(search_steps=0))
    assert answer.lower_bound_ps <= 53 <= answer.value_ps


def test_nothing_to_run_takes_no_time() -> None:
    answer = solve_table(table(pieces=[]))
    assert (answer.value_ps, answer.runs, answer.proven) == (0, (), True)


def test_no_room_is_said_with_proof() -> None:
    with pytest.raises(InfeasibleError, match=r"6 pieces .* 2 devices: there is none") as caught:
        solve_table(table(pieces=[{"bits": 10, "run": [1, 1, 1]}] * 6))
    assert caught.value.is_proven is True


def test_everything_that_is_wrong_is_said_at_once() -> None:
    kinds: list[dict[str, Any]] = [{"cap": -1}, {"cap": 1.5}, {"cap": 1, "room": 2}]
    with pytest.raises(InvalidInputError) as caught:
        solve_table(table(objective="speed", kinds=kinds, devices=[7], batches=0, hop=[], any="yes"))
    said = str(caught.value)
    for part in (
        "kinds[0].cap is -1",
        "kinds[1].cap is 1.5",
        "kinds[2] has room",
        "devices[0] is of kind 7",
        "objective is 'speed'",
        "batches is 0",
        "hop has 0 rows for 3 kinds",
        "any is 'yes'",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"devices": [0] * 65}, "65 devices, and at most 64"),
        ({"devices": [0, 2, 2]}, "2 devices are the host"),
        ({"pieces": [{"bits": 1 << 58, "run": [1, 1, 1]}] * 8}, "bits of all pieces come to"),
        ({"pieces": [{"bits": 1, "run": [1 << 57, 1, 1]}] * 4}, "picoseconds of all pieces and hops come to"),
        (
            {"objective": "pipeline", "batches": 1 << 58},
            "picoseconds of all batches come to",
        ),
        ({"pieces": [{"bits": 1, "run": [1, 1]}]}, r"pieces\[0\].run is \[1, 1\]"),
        ({"pieces": [{"bits": 1, "run": [1, 1, 1], "homes": [3]}]}, "names kind 3, and there are 3"),
        ({"pieces": "abc"}, "pieces is str, and must be a list"),
        ({"steps": 1}, "the table has steps, and can have objective"),
        ({"ties": [{"pieces": [3, 1], "bits": 1}]}, "pieces of tie 0 must be"),
        ({"ties": [{"pieces": 3, "bits": 1}]}, r"ties\[0\].pieces is int"),
        ({"overlap": 1}, "overlap is 1, and must be true or false"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        solve_table(table(**changes))


def test_the_example_is_what_it_says() -> None:
    assert doctest.testmod(timed) == (0, 2)
