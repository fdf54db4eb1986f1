"""What a step takes on a device of a machine, in whole picoseconds: a block's run, the fetch of its weights, a hop between devices."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final

from planner.devices.keys import DeviceKey
from planner.devices.machine import Machine
from planner.devices.machine_parts import MachineDevice
from planner.devices.rate import Rate
from planner.errors import InvalidDevicesError
from planner.model.work import BlockWork

__all__ = ["fetch_ps", "hop_ps", "run_ps"]

_PS: Final = 10**12


def run_ps(
    device: MachineDevice,
    work: BlockWork,
    *,
    dtype: str,
    tokens: int,
    state_bytes: int = 0,
    state_flops: int = 0,
) -> int:
    """What a block takes whose weights are there.

    Args:
        device: with its rates.
        work: of the block, in this step.
        dtype: what it computes in.
        tokens: new tokens of the step.
        state_bytes: what it reads of its cache.
        state_flops: operations on these.

    Returns:
        The longer of reading and computing, and what starting takes. Where the device's products were measured in this type, what
        they took for the weights counts in place of both.

    Raises:
        InvalidDevicesError: the machine does not say how fast the device reads, or computes in this type. Fields: ``device``.

    Example:
        >>> card = MachineDevice(id=0, kind="cuda", memory_bytes_per_s=Rate.of_user(10**12),
        ...     flops_per_s={"bfloat16": Rate.of_user(10**14)}, launch_ps=Rate.of_user(5))
        >>> run_ps(card, BlockWork(weight_bytes=100, touched_bytes=100, flops=100), dtype="bfloat16", tokens=1)
        105
    """
    launch_ps = device.launch_ps.value * work.modules if device.launch_ps else 0
    measured = device.weights_bytes_per_s.get(dtype)
    memory = device.memory_bytes_per_s
    if measured:
        weights_ps = _by_tokens(measured, tokens, work.touched_bytes)
        return (
            weights_ps
            + (_over(state_bytes, _known(memory, device, "memory_bytes_per_s")) if state_bytes else 0)
            + launch_ps
        )
    compute = device.compute_rate(dtype)
    reading_ps = _over(work.touched_bytes + state_bytes, _known(memory, device, "memory_bytes_per_s"))
    computing_ps = _over(work.flops + state_flops, _known(compute, device, f"flops_per_s of {dtype}"))
    return max(reading_ps, computing_ps) + launch_ps


def fetch_ps(machine: Machine, to: DeviceKey, size_bytes: int, *, home: DeviceKey) -> int:
    """What bringing a block's weights in takes, from the host or from the disk.

    Args:
        machine: with its links.
        to: the device that runs the block.
        size_bytes: all of its weights.
        home: where they lie: a host, or "disk", which reads while the host passes on, so that the slower of both counts.

    Raises:
        InvalidInputError: no link tells. Fields: ``source``, ``to``.
    """
    route = machine.route(home, to)
    if home == "disk":
        return max(
            (_link_ps(link.bytes_per_s, link.latency_ps, size_bytes) for link in route.links), default=0
        )
    return route.copy_ps(size_bytes)


def hop_ps(machine: Machine, source: DeviceKey, to: DeviceKey, size_bytes: int) -> int:
    """What an activation takes from one device to another. Raises: as :func:`fetch_ps`."""
    return machine.route(source, to).copy_ps(size_bytes)


def _by_tokens(rates: Mapping[int, Rate], tokens: int, size_bytes: int) -> int:
    """What products take with a number of tokens: between two that were measured on a straight line, above the last in proportion.

    More tokens never take less, whatever was measured.
    """
    known: Sequence[int] = sorted(rates)
    times = list(accumulate((_over(size_bytes, rates[each].value) for each in known), max))
    if tokens <= known[0]:
        return times[0]
    if tokens >= known[-1]:
        # Beyond the last, products only compute.
        return -(-times[-1] * tokens // known[-1])
    at = bisect_left(known, tokens)
    low, high = known[at - 1], known[at]
    return times[at - 1] + (times[at] - times[at - 1]) * (tokens - low) // (high - low)


def _over(amount: int, rate: int) -> int:
    return -(-amount * _PS // rate)


def _link_ps(rate: Rate, latency_ps: Rate | None, size_bytes: int) -> int:
    return _over(size_bytes, rate.value) + (latency_ps.value if latency_ps else 0)


def _known(rate: Rate | None, device: MachineDevice, what: str) -> int:
    if rate is not None:
        return rate.value
    name = f" ({device.name})" if device.name else ""
    raise InvalidDevicesError(
        f"the machine does not say {what} of device {device.key}{name}: write it there, or measure it with "
        "planner probe --out machine.json",
        device=device.key,
    )
