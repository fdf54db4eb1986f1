"""Up to how many new tokens the host is the faster one for a part that lies there, and from where on the part is brought in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from planner.devices.keys import DeviceKey
from planner.devices.machine import Machine
from planner.model.work import BlockWork
from planner.planning.line_sizes import HOST, LineSizes
from planner.strategies.costs import run_ps

__all__ = ["MOST_TOKENS", "first_above", "host_up_to_tokens"]

MOST_TOKENS: Final = 1 << 20
"""New tokens of the longest step that is thought of where no workload says how long steps can be."""

_LOOKS: Final = 4_096

Times: TypeAlias = Callable[[int], int]
"""By new tokens of a step, picoseconds, which never fall."""


def host_up_to_tokens(
    machine: Machine, work: BlockWork, sizes: LineSizes, key: DeviceKey, *, fetch_ps: int
) -> int | None:
    """The most new tokens of a step up to which the host runs a part that lies there, for the run of another device.

    Args:
        machine: with its rates.
        work: of the part, in the step of the plan.
        sizes: of that step.
        key: the device of its run.
        fetch_ps: what bringing the part in takes.

    Returns:
        The largest number up to which, from the step of the plan on, the host takes no longer for it, hops included, than bringing it
        in and running it on the device. The plan's own step is run as the plan says. None where the host takes no longer in any step
        up to the longest.

    Cost: some hundred times of runs.
    """
    first, longest = sizes.tokens, sizes.longest_tokens
    if longest <= first:
        return None
    hops = (machine.route(key, HOST), machine.route(HOST, key))
    token_bytes = sizes.activation_bytes // first

    def run(device: DeviceKey, tokens: int) -> int:
        step = work.in_step(tokens, of=first, experts=sizes.experts)
        return run_ps(machine.device(device), step, dtype=sizes.dtype, tokens=tokens)

    def on_host(tokens: int) -> int:
        return run(HOST, tokens) + sum(hop.copy_ps(tokens * token_bytes) for hop in hops)

    above = first_above(on_host, lambda tokens: fetch_ps + run(key, tokens), first, longest)
    return None if above is None else max(first, above - 1)


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
