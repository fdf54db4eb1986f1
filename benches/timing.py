"""Timing contenders in turns, and printing what was measured."""

from __future__ import annotations

import gc
import math
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["NOT_RUN", "TURN_S", "Timing", "race", "ratio", "slope", "table", "times", "words"]

TIME_LIMIT_S = 240.0
SLOW_S = 3.0
TURN_S = 0.01


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender, turn by turn: the median of each turn, and its first call alone.

    A first call is cold: the caches hold others' work. `limit_s` is set where the contender was stopped, and there are
    no turns then, nor where it was not started.
    """

    turns: tuple[float, ...] = ()
    cold_turns: tuple[float, ...] = ()
    limit_s: float | None = None

    @property
    def seconds(self) -> float:
        return statistics.median(self.turns)

    @property
    def cold_seconds(self) -> float:
        return statistics.median(self.cold_turns)

    def __str__(self) -> str:
        if not self.turns:
            return f"> {self.limit_s:.0f} s" if self.limit_s else "not run"
        return words(self.seconds) + ("" if len(self.turns) > 1 else "*")


NOT_RUN = Timing()


def ratio(above: Sequence[float], below: Sequence[float]) -> float | None:
    """How many times as long one takes as the other: the median over rounds, so that a slow spell hits both.

    Of medians, where one of them was called once only; None where one of them has no time.
    """
    if not above or not below:
        return None
    if len(above) != len(below):
        return statistics.median(above) / statistics.median(below)
    return statistics.median(one / other for one, other in zip(above, below, strict=True))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in pure-Python code that runs for longer."""

    def stop(*_: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def no_collector() -> Iterator[None]:
    """Switches the cyclic garbage collector off, as `timeit` does."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def seconds_of(call: Callable[[], object]) -> tuple[float, object]:
    """Wall time of one call and what it gave."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def race(
    contenders: Mapping[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, Timing], dict[str, object]]:
    """Times all contenders in turns. The first round warms up, unless a call is too slow to be repeated.

    In a turn, a contender is called again until the turn is over, so that short calls are measured often.
    """
    spent: dict[str, list[list[float]]] = {name: [] for name in contenders}
    timings: dict[str, Timing] = {}
    results: dict[str, object] = {}
    order = random.Random(0)
    with no_collector():
        for name, call in contenders.items():
            try:
                with time_limit(TIME_LIMIT_S):
                    first, results[name] = seconds_of(call)
            except TimeoutError:
                timings[name] = Timing(limit_s=TIME_LIMIT_S)
                continue
            if first > SLOW_S:
                timings[name] = Timing((first,), (first,))
        repeated = [name for name in contenders if name not in timings]
        for _ in range(rounds):
            order.shuffle(repeated)  # so that nobody always follows the one that warms the caches for him
            for name in repeated:
                spent[name].append(one_turn(contenders[name]))
    for name in repeated:
        medians = tuple(statistics.median(turn) for turn in spent[name])
        timings[name] = Timing(medians, tuple(turn[0] for turn in spent[name]))
    return {name: timings[name] for name in contenders}, results


def one_turn(call: Callable[[], object]) -> list[float]:
    """Seconds of as many calls as fit into a turn, at least one."""
    spent: list[float] = []
    while sum(spent) < TURN_S:
        spent.append(seconds_of(call)[0])
    return spent


def slope(points: Sequence[tuple[int, float]]) -> float:
    """Exponent b of the least-squares fit seconds = a x size^b."""
    xs, ys = [math.log(size) for size, _ in points], [math.log(seconds) for _, seconds in points]
    return statistics.linear_regression(xs, ys).slope


def words(seconds: float) -> str:
    scales = ((1.0, "s"), (1e3, "ms"), (1e6, "µs"))
    factor, unit = next((scale for scale in scales if seconds * scale[0] >= 1), scales[-1])
    value = seconds * factor
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.{0 if ratio >= 10 else 2}f}×"


def table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    cells = [list(head), *([str(cell) for cell in line] for line in lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    rows = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    return "\n".join([rows[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rows[1:]])
