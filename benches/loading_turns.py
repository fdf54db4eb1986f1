"""Contenders in turns in a random order, what each turn took, and figures beside what they are held against."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from loading_files import NotColdError
from timing import table

__all__ = [
    "Figure",
    "Spent",
    "clocked",
    "figures_table",
    "in_turns",
    "median_ratio",
    "median_s",
    "ratio_figure",
]


@dataclass(frozen=True)
class Spent:
    """Seconds of one turn: by the clock, and of all threads' processor time."""

    wall_s: float
    processor_s: float


@dataclass(frozen=True)
class Figure:
    """What was measured, and what it may be.

    Args:
        what: in words.
        value: None where it could not be measured, and `shown` says why.
        target: the most that it may be; None where it only stands beside.
        shown: the value as it is printed.
        beside: the seconds it comes from.
    """

    what: str
    value: float | None
    target: float | None
    shown: str
    beside: str = ""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "not measured" if self.value is None else "met" if self.value <= self.target else "missed"


def clocked(run: Callable[[], Any], prepare: Callable[[], Any] = lambda: None) -> Callable[[], Spent]:
    """A turn: what `prepare` gives is made and let go outside of the clock. It is handed to `run` where it is not None."""

    def turn() -> Spent:
        made = prepare()
        gc.collect()
        start_s, processor_s = time.perf_counter(), time.process_time()
        result = run() if made is None else run(made)  # type: ignore[call-arg]
        spent = Spent(time.perf_counter() - start_s, time.process_time() - processor_s)
        del result, made
        gc.collect()
        return spent

    return turn


@contextmanager
def collector(is_on: bool) -> Iterator[None]:
    gc.collect()
    (gc.enable if is_on else gc.disable)()
    try:
        yield
    finally:
        gc.enable()


def say(words: str) -> None:
    print(f"# {words}", flush=True)


def in_turns(
    contenders: Mapping[str, Callable[[], Spent]],
    rounds: int,
    *,
    is_collector_on: bool = False,
    seconds: float = math.inf,
    say: Callable[[str], None] = say,
) -> dict[str, list[Spent]]:
    """All contenders in each round, in an order drawn anew, after a round that does not count.

    A contender that raises is left out from then on, and has no turns; so has a round without a cold cache. After so many seconds
    no further round begins, but for the first that counts.
    """
    end_s = time.monotonic() + seconds
    order, names = random.Random(0), list(contenders)
    spent: dict[str, list[Spent]] = {name: [] for name in names}
    with collector(is_collector_on):
        for number in range(rounds + 1):
            if number > 1 and time.monotonic() > end_s:
                break
            order.shuffle(names)
            turns: dict[str, Spent] = {}
            try:
                for name in list(names):
                    try:
                        turns[name] = contenders[name]()
                    except NotColdError:
                        raise
                    except Exception as error:
                        say(f"{name}: {type(error).__name__}: {str(error)[:200]}")
                        names.remove(name)
                        spent[name].clear()
            except NotColdError as error:
                say(f"round {number} left out: {error}")
                continue
            if number:
                for name, turn in turns.items():
                    spent[name].append(turn)
    return spent


def median_s(turns: Sequence[Spent], clock: str = "wall_s") -> float | None:
    return statistics.median(getattr(turn, clock) for turn in turns) if turns else None


def median_ratio(above: Sequence[Spent], below: Sequence[Spent], clock: str = "wall_s") -> float | None:
    """The median over rounds, so that a slow spell of the machine hits both."""
    if not above or len(above) != len(below):
        return None
    pairs = zip(above, below, strict=True)
    return statistics.median(getattr(a, clock) / max(getattr(b, clock), 1e-9) for a, b in pairs)


def ratio_figure(
    what: str,
    spent: Mapping[str, Sequence[Spent]],
    above: str,
    below: str,
    target: float | None,
    clock: str = "wall_s",
) -> Figure:
    value = median_ratio(spent[above], spent[below], clock)
    first, second = median_s(spent[above], clock), median_s(spent[below], clock)
    beside = "" if first is None or second is None else f"{first:.3f} / {second:.3f} s"
    return Figure(what, value, target, "" if value is None else f"{value:.2f}×", beside)


def figures_table(figures: Sequence[Figure]) -> str:
    lines = [
        [
            figure.what,
            figure.shown,
            "" if figure.target is None else f"≤ {figure.target:g}",
            figure.verdict,
            figure.beside,
        ]
        for figure in figures
    ]
    return table(["what", "figure", "target", "", "medians"], lines)
