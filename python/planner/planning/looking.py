"""The search for the largest value that has a plan: where it is looked for, one plan after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from planner.errors import InfeasibleError
from planner.plans.plan import Plan

if TYPE_CHECKING:
    from planner.planning.guessing import Guess

__all__ = ["searched"]

# How often recordings near by are asked where those far away have told what is not so.
_CORRECTIONS: Final = 2


def searched(
    planned: Callable[[int], Plan], least: int, most: int, guess: Guess | None
) -> tuple[int, Plan, InfeasibleError | None, int]:
    """The largest value with a plan.

    Args:
        planned: makes the plan of a value.
        least, most: between which it lies.
        guess: what tells where to look.

    Returns:
        The value, its plan, the error of the next one, and how many were planned; no error where the most has a plan.

    Raises:
        InfeasibleError: not even the least has a plan.
    """
    best, refused, tried = least - 1, most + 1, 0
    found: Plan | None = None
    error: InfeasibleError | None = None
    places = _Places(least, most, guess)
    while refused - best > 1:
        value = places.next(best, refused)
        tried += 1
        try:
            best, found = value, planned(value)
        except InfeasibleError as this:
            if value == least:
                raise
            refused, error = value, this
    assert found is not None  # else the least was refused
    return best, found, error, tried


class _Places:
    """Where to look next: at what is guessed and at the value after it; where that was wrong, at what recordings near by tell; then
    ever farther from there, and at last in the middle.

    Args:
        least, most: between which the answer lies.
        guess: what tells where to look.
    """

    def __init__(self, least: int, most: int, guess: Guess | None) -> None:
        self._least, self._most, self._guess = least, most, guess
        at = guess.between(least, most) if guess is not None else None
        at = max(least, min(most, at or least))
        self._asked = [at + 1, at]
        self._better = _CORRECTIONS if guess is not None else 0
        self._step = 1

    def next(self, best: int, refused: int) -> int:
        """A value between the largest that has a plan and the smallest that has none."""
        while True:
            while self._asked:
                value = self._asked.pop()
                if best < value < refused:
                    return value
            if not self._better or self._guess is None:
                return self._farther(best, refused)
            self._better -= 1
            near = best if best >= self._least else refused - 1
            at = self._guess.near(near, max(best, self._least), refused - 1)
            self._asked = [] if at is None else [at + 1, at]

    def _farther(self, best: int, refused: int) -> int:
        step, self._step = self._step, 2 * self._step
        if refused > self._most:
            return min(self._most, best + step)
        if best < self._least:
            return max(self._least, refused - step)
        return (best + refused) // 2
