"""Where the largest context or batch lies, from a few recordings: what the search for it begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from math import isqrt
from typing import Final, TypeAlias

from planner.choices import Asked
from planner.errors import InvalidInputError, RecordingError
from planner.planning.automatic import has_plan, search_of_weights, with_rooms
from planner.planning.fits import RunFit, fit_of
from planner.planning.problem import Problem
from planner.planning.recorded import Recordable
from planner.planning.rooms import formula_rooms, recordable_for, recorded_rooms
from planner.planning.running import RunningRooms
from planner.settings.workload import Workload
from planner.strategies.auto import AutoSearch

__all__ = ["Guess"]

# Above the windows of most models, where nothing grows faster than scores do, and nothing overflows.
_FAR_TOKENS: Final = 1 << 16
_LEAST_TOKENS: Final = 4  # a prompt, and two steps after it
# One row runs other operators: what is expanded need not be copied.
_BATCHES: Final = (2, 3)
# Some sizes are rounded up to a multiple of some power of two; what is recorded is one.
_ROUND: Final = 64

_RoomsAt: TypeAlias = Callable[[int], RunningRooms]


class Guess:
    """The search for a value with plans that are not made: each probe is what planning would find, were a recording there what a
    few recordings tell of it.

    Args:
        problem: with any value.
        of: what is asked for.
        has_prompt: whether the length of the prompt was said, and stays as it is.
    """

    def __init__(self, problem: Problem, of: Asked, *, has_prompt: bool) -> None:
        self._model = problem.run_model()
        self._workload = problem.settings.workload
        self._of = of
        self._has_prompt = has_prompt
        self._search = search_of_weights(problem, problem.blocks())
        self._recordable = self._recordable_model()

    def between(self, least: int, most: int) -> int | None:
        """The largest value with a plan, as far as a few recordings tell.

        Returns:
            A value from `least` to `most`, or one less than `least` where not even that has a plan. None where recordings have run
            different operators, so that they tell nothing of other values.

        Cost: two recordings, or three, and three more for each eighth of their tokens that the value lies below; they are kept.
            Then some fifteen probes, each O(events) and a search.
        """
        try:
            if self._recordable is not None:
                return self._recorded(self._recordable, least, most)
        except (RecordingError, InvalidInputError):
            self._recordable = None  # plans of it are made by formulas, too
        return self._bisected(self._by_formula, least, most)

    def near(self, value: int, least: int, most: int) -> int | None:
        """The same from recordings close to a value, where those far away have told what is not so.

        Args:
            value: where recordings are made, or a little below.
            least, most: between which the answer is known to be.
        """
        if self._recordable is None:
            return None
        step = -(-value // (4 * _ROUND * _ROUND)) * _ROUND if value >= 4 * _ROUND else 1
        count = 2 if self._of == "batch_size" else 3
        last = value // step * step
        values = range(last - (count - 1) * step, last + 1, step)
        if values[0] < self._first_value():
            return None
        try:
            fit = fit_of(self._recordable, [self._at(each) for each in values])
        except (RecordingError, InvalidInputError):
            return None
        return None if fit is None else self._bisected(self._by(fit), least, most)

    def _recordable_model(self) -> Recordable | None:
        try:
            return recordable_for(self._model, self._search.blocks)
        except RecordingError:
            return None

    def _first_value(self) -> int:
        """The least at which a recording has all that others have."""
        if self._of == "batch_size":
            return _BATCHES[0]
        workload = self._workload
        assert workload is not None
        return (workload.prompt_tokens if self._has_prompt else 1) + _LEAST_TOKENS

    def _recorded(self, model: Recordable, least: int, most: int) -> int | None:
        if self._of == "batch_size":
            fit = fit_of(model, [self._at(value) for value in _BATCHES])
            return None if fit is None else self._bisected(self._by(fit), least, most)
        top, found = min(most, _FAR_TOKENS), None
        while True:
            values = _spread(least, top)
            fit = fit_of(model, [self._at(value) for value in values])
            if fit is None:
                return found
            found = self._bisected(self._by(fit), least, most)
            # Below the recordings, windows may not be full.
            below = 1 << found.bit_length()
            if found >= values[0] or below >= top:
                return found
            top = below

    def _at(self, value: int) -> Workload:
        workload = self._workload
        assert workload is not None
        if self._of == "batch_size":
            return replace(workload, batch_size=value)
        prompt = workload.prompt_length if self._has_prompt else value
        return replace(workload, context_length=value, prompt_length=prompt)

    def _by_formula(self, value: int) -> RunningRooms:
        return formula_rooms(self._model, self._at(value), self._search.blocks)

    def _by(self, fit: RunFit) -> _RoomsAt:
        def rooms_at(value: int) -> RunningRooms:
            workload = self._at(value)
            return recorded_rooms(self._model, workload, self._search.blocks, fit.at(workload))

        return rooms_at

    def _bisected(self, rooms_at: _RoomsAt, least: int, most: int) -> int:
        """The largest value whose rooms have a plan, or one less than the least.

        What is known without a plan narrows it down: up to some value all fit, from another one on none does.
        """
        rooms_at, quick = cache(rooms_at), dict[int, bool | None]()

        def fits(value: int) -> bool | None:
            if value not in quick:
                quick[value] = self._answer(self._fits, rooms_at, value)
            return quick[value]

        sure = _largest(least - 1, most + 1, lambda value: fits(value) is True)
        hopeless = min((value for value, found in quick.items() if found is False), default=most + 1)
        maybe = _largest(sure, hopeless, lambda value: fits(value) is not False)
        step = 0  # a replay may find more than blocks add up to, so that even what is sure has no plan
        while sure >= least and not self._answer(has_plan, rooms_at, sure):
            step, maybe = 8 * step + 1, sure - 1
            sure = max(least - 1, sure - step)
        return _largest(sure, maybe + 1, lambda value: bool(self._answer(has_plan, rooms_at, value)))

    def _answer(
        self, ask: Callable[[AutoSearch, RunningRooms], bool | None], rooms_at: _RoomsAt, value: int
    ) -> bool | None:
        """What is found of a value; no plan where the recordings do not tell what runs."""
        try:
            return ask(self._search, rooms_at(value))
        except InvalidInputError:
            return False

    @staticmethod
    def _fits(search: AutoSearch, rooms: RunningRooms) -> bool | None:
        return False if (problem := with_rooms(search, rooms)) is None else problem.fits()


def _largest(best: int, refused: int, holds: Callable[[int], bool]) -> int:
    """The largest value of which something holds, of those between one that is taken for such and one of which it does not."""
    while refused - best > 1:
        value = _middle(best, refused)
        if holds(value):
            best = value
        else:
            refused = value
    return best


def _middle(best: int, refused: int) -> int:
    """Between two values: of those far apart, in the middle of their orders of magnitude."""
    if refused > 4 * max(best, 1):
        return max(best + 1, isqrt(max(best, 1) * refused))
    return (best + refused) // 2


def _spread(least: int, most: int) -> Sequence[int]:
    """Where recordings are made, up to `most` or a little more."""
    first = max(least + 2, most // 8, _LEAST_TOKENS)
    middle = max(first + 1, most // 2)
    return [first, middle, max(middle + 1, most)]
