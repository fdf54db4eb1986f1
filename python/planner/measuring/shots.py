"""How long something takes: several shots of it, and how far they lie apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

from planner.devices.rate import MOST_RATE, Rate

_LEAST_SHOT_S: Final = 0.002  # far above what a clock tells apart and what starting a kernel takes
_LEAST_SHOTS: Final = 5
_MOST_SHOTS: Final = 60
_MOST_REPEATS: Final = 1 << 14
_TRIALS: Final = 3


@dataclass(frozen=True, slots=True)
class Shots:
    """Seconds of one call: the median of several shots, the shortest and the longest."""

    median_s: float
    least_s: float
    most_s: float
    count: int

    def rate(self, amount: float, how: str) -> Rate:
        """An amount a call as a rate a second. Args: ``how``: what was measured, in words."""
        value, low, high = (
            _number(amount / seconds) for seconds in (self.median_s, self.most_s, self.least_s)
        )
        return self._rate(value, low, high, how)

    def duration_ps(self, how: str) -> Rate:
        """The duration itself, in picoseconds."""
        value, low, high = (_number(seconds * 1e12) for seconds in (self.median_s, self.least_s, self.most_s))
        return self._rate(value, low, high, how)

    def _rate(self, value: int, low: int, high: int, how: str) -> Rate:
        source = f"{how}, median of {self.count}"
        return Rate(value=value, origin="measured", low=low, high=high, source=source)


def shots_of(run: Callable[[], object], wait: Callable[[], object], *, most_s: float) -> Shots:
    """Times a call.

    Args:
        run: what is timed; it may return before the work is done.
        wait: returns when all of it is done.
        most_s: after how long no more shots are begun, where there are five already.

    Guarantee: each shot takes at least 2 ms, by repeating the call; it is called at least once before any that counts.
    """
    run()  # what a first call alone takes is not counted: memory is mapped, libraries are loaded, kernels are chosen
    wait()
    # The shortest of a few, because a busy machine makes a single shot seem long enough.
    repeats, one_s = 1, min(_shot(run, wait, 1) for _ in range(_TRIALS))
    while one_s < _LEAST_SHOT_S and repeats < _MOST_REPEATS:
        repeats = min(_MOST_REPEATS, max(2 * repeats, int(repeats * _LEAST_SHOT_S / max(one_s, 1e-9))))
        one_s = min(_shot(run, wait, repeats) for _ in range(_TRIALS))
    begun_s = time.perf_counter()
    shots: list[float] = []
    while len(shots) < _MOST_SHOTS:
        is_time_over = time.perf_counter() - begun_s + one_s > most_s
        if is_time_over and len(shots) >= _LEAST_SHOTS:
            break
        shots.append(_shot(run, wait, repeats) / repeats)
    return Shots(median(shots), min(shots), max(shots), len(shots))


def _shot(run: Callable[[], object], wait: Callable[[], object], repeats: int) -> float:
    begun_s = time.perf_counter()
    for _ in range(repeats):
        run()
    wait()
    return time.perf_counter() - begun_s


def _number(value: float) -> int:
    return min(MOST_RATE, max(1, round(value)))
