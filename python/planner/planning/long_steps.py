"""Up to how many new tokens the host is the faster one for a part that lies there, and from where on the part is brought in."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Final, TypeAlias

from planner.devices.keys import DeviceKey
from planner.devices.machine import Machine
from planner.model.work import BlockWork
from planner.planning.line_sizes import HOST, LineSizes
from planner.strategies.costs import run_ps

__all__ = ["MOST_TOKENS", "LongSteps", "first_above"]

MOST_TOKENS: Final = 1 << 20
"""New tokens of the longest step that is thought of where no workload says how long steps can be."""

_LOOKS: Final = 4_096

Times: TypeAlias = Callable[[int], int]
"""By new tokens of a step, picoseconds, which never fall."""


class LongSteps:
    """What a part takes in steps of more and more new tokens: where the host runs it, and where it is brought in.

    Args:
        machine: with its rates.
        work: of the part, in the step of the plan.
        sizes: of that step.
        key: the device of its run.
        fetch_ps: what bringing the part in takes.
    """

    def __init__(
        self, machine: Machine, work: BlockWork, sizes: LineSizes, key: DeviceKey, *, fetch_ps: int
    ) -> None:
        self._machine, self._work, self._sizes, self._key, self._fetch_ps = (
            machine,
            work,
            sizes,
            key,
            fetch_ps,
        )
        self._hops = (machine.route(key, HOST), machine.route(HOST, key))

    @cached_property
    def is_brought_in(self) -> bool:
        """Whether there is a step for which bringing it in is faster."""
        first, longest = self._sizes.tokens, self._sizes.longest_tokens
        # Most that are brought in at all are in the longest step, which is two times of runs and not some hundred.
        return longest > first and (
            self._on_host(longest) > self._brought_in(longest) or self.host_up_to_tokens is not None
        )

    @cached_property
    def host_up_to_tokens(self) -> int | None:
        """The most new tokens of a step up to which the host runs the part.

        The largest number up to which, from the step of the plan on, the host takes no longer for it, hops included, than bringing it
        in and running it on the device. The plan's own step is run as the plan says. None where the host takes no longer in any step
        up to the longest.

        Cost: some hundred times of runs.
        """
        first, longest = self._sizes.tokens, self._sizes.longest_tokens
        if longest <= first:
            return None
        above = first_above(self._on_host, self._brought_in, first, longest)
        return None if above is None else max(first, above - 1)

    def _on_host(self, tokens: int) -> int:
        passed_bytes = tokens * (self._sizes.activation_bytes // self._sizes.tokens)
        return self._run_ps(HOST, tokens) + sum(hop.copy_ps(passed_bytes) for hop in self._hops)

    def _brought_in(self, tokens: int) -> int:
        return self._fetch_ps + self._run_ps(self._key, tokens)

    def _run_ps(self, device: DeviceKey, tokens: int) -> int:
        sizes = self._sizes
        step = self._work.in_step(tokens, of=sizes.tokens, experts=sizes.experts)
        return run_ps(self._machine.device(device), step, dtype=sizes.dtype, tokens=tokens)


def first_above(one: Times, other: Times, first: int, last: int) -> int | None:
    """The least number in a range for which one time is more than another.

    Returns:
        None if there is none. Where the two are so close for so long that it would take too many looks, a number before which there
        is none.

    Example:
        >>> first_above(lambda tokens: 3 * tokens, lambda tokens: 100 + tokens, 1, 1_000)
        51
    """
    ranges = [(first, last)]
    for _ in range(_LOOKS):
        if not ranges:
            return None
        low, high = ranges.pop()
        if one(high) <= other(low):
            continue  # neither falls, so it is above nowhere in between
        if low == high or one(low) > other(low):
            return low
        middle = (low + high) // 2
        ranges += [(middle + 1, high), (low, middle)]
    return ranges[-1][0] if ranges else None
