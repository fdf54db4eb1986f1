"""Where the largest context or batch lies, from a few recordings: what the search for it begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from planner.choices import Asked
from planner.devices.budgets import with_taken
from planner.memory.demand_polynomials import DemandPolynomials
from planner.memory.polynomials import Basis, Point, fitted
from planner.planning.automatic import search_of_weights
from planner.planning.problem import Problem
from planner.planning.rooms import formula_rooms, recorded_for
from planner.planning.running import RunningRooms
from planner.settings.workload import Workload
from planner.strategies.auto import AutoSearch
from planner.strategies.running import is_beyond

__all__ = ["Guess"]

# Above the windows of most models, where nothing grows faster than scores do, and nothing overflows.
_FAR_TOKENS: Final = 1 << 16
_LEAST_TOKENS: Final = 4  # a prompt, and two steps after it
# One row runs other operators: what is expanded need not be copied.
_BATCHES: Final = (2, 3)
_ROUNDS: Final = 4


class Guess:
    """The search for a value with plans that are not made.

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

    def between(self, least: int, most: int) -> int | None:
        """The largest value with a plan, as far as a few recordings tell.

        Returns:
            A value from `least` to `most`, or one less than `least` where not even that has a plan. None where recordings have run
            different operators, so that they tell nothing of other values.

        Cost: two or three recordings, at most twice; then O(events) in each of a few rounds, and O(blocks) for each of some twenty
            probes in these.
        """
        is_batch = self._of == "batch_size"
        values = _BATCHES if is_batch else _spread(least, min(most, _FAR_TOKENS))
        if not recorded_for(self._model, self._at(values[0]), self._search.blocks).tapes:
            return self._bisected(self._by_formula, least, most)
        found = self._from(values, least, most)
        if is_batch or found is None or found >= values[0]:
            return found
        # Below the recordings, windows may not be full.
        return self._from(_spread(least, found), least, most) or found

    def _from(self, values: Sequence[int], least: int, most: int) -> int | None:
        """What recordings at some values tell."""
        workloads = [self._at(value) for value in values]
        found = [recorded_for(self._model, each, self._search.blocks) for each in workloads]
        if len({len(each.tapes) for each in found}) > 1:
            return None
        points = [_point(workload) for workload in workloads]
        runs = [fitted(points, tapes) for tapes in zip(*(each.tapes for each in found), strict=True)]
        known = [run for run in runs if run is not None]
        if len(known) < len(runs):
            return None
        demands = DemandPolynomials(Basis.of(points), known, [each.main_needs_bytes for each in found])

        def by_polynomials(workload: Workload) -> RunningRooms:
            here = demands.at(_point(workload))
            return RunningRooms(by_phase={"prefill": here}, margin=workload.allocator_margin)

        value = values[-1]
        for _ in range(_ROUNDS):
            demands.look_at(_point(self._at(max(least, value))))
            before, value = value, self._bisected(by_polynomials, least, most, value)
            if value == before:
                break
        return value

    def _at(self, value: int) -> Workload:
        workload = self._workload
        assert workload is not None
        if self._of == "batch_size":
            return replace(workload, batch_size=value)
        prompt = workload.prompt_length if self._has_prompt else value
        return replace(workload, context_length=value, prompt_length=prompt)

    def _by_formula(self, workload: Workload) -> RunningRooms:
        return formula_rooms(self._model, workload, self._search.blocks)

    def _bisected(
        self, rooms_at: Callable[[Workload], RunningRooms], least: int, most: int, known: int | None = None
    ) -> int:
        """The largest value whose rooms have a plan, or one less than the least; `known` is where it may lie."""
        best, refused = least - 1, most + 1
        tried = [] if known is None else [known + 1, known]
        while refused - best > 1:
            value = tried.pop() if tried else (best + refused) // 2
            if not best < value < refused:
                continue
            if _is_room(self._search, rooms_at(self._at(value))):
                best = value
            else:
                refused = value
        return best


def _is_room(search: AutoSearch, rooms: RunningRooms) -> bool:
    """Whether there is a plan; where that is not known, it is taken for none."""
    devices = [budget.device for budget in search.device_budgets]
    budgets = with_taken(search.device_budgets, rooms.most.resting_bytes)
    if is_beyond(search.blocks, rooms.most, budgets):
        return False
    demands = rooms.searched(search.staying, devices)
    return bool(replace(search, demands=demands, device_budgets=budgets).fits())


def _spread(least: int, most: int) -> Sequence[int]:
    """Where recordings are made, up to `most` or a little more."""
    first = max(least + 2, most // 8, _LEAST_TOKENS)
    middle = max(first + 1, most // 2)
    return [first, middle, max(middle + 1, most)]


def _point(workload: Workload) -> Point:
    return workload.rows, workload.context_length
