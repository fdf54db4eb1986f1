"""What running takes on devices: added up of what blocks need, and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planner.devices.keys import DeviceKey
from planner.memory.demands import BlockDemand, Demands
from planner.names import device_of
from planner.plans.columns import one_size
from planner.plans.parts import PlanParts
from planner.plans.places import runner_name
from planner.spelling import one_line

__all__ = ["Running", "running_by_device", "running_words"]


@dataclass(frozen=True, slots=True)
class Running:
    """What running blocks takes on one device.

    Args:
        cache_bytes: what they keep from forward to forward.
        activation_bytes: what they need besides.
        largest: the block that needs most at once, which decides how much that is; "" without one.
    """

    cache_bytes: int = 0
    activation_bytes: int = 0
    largest: str = ""


def running_by_device(
    demands: Demands, device_map: Mapping[str, DeviceKey], execution_map: Mapping[str, DeviceKey]
) -> dict[DeviceKey, Running]:
    """What running takes, by device that runs anything: caches and lasting results of all of its blocks, and the most that one of
    them needs at once, with what is shared.

    Cost: O(blocks · depth).
    """
    blocks: dict[DeviceKey, list[tuple[str, BlockDemand]]] = {}
    for name, demand in demands.blocks.items():
        device = device_of(name, execution_map)
        device = device_of(name, device_map) if device is None else device
        if device is not None:
            blocks.setdefault(device, []).append((name, demand))
    found = {}
    for device, rows in blocks.items():
        largest, most = max(rows, key=lambda row: row[1].needs_bytes)
        lasting_bytes = sum(demand.lasting_bytes for _, demand in rows)
        found[device] = Running(
            cache_bytes=sum(demand.cache_bytes for _, demand in rows),
            activation_bytes=lasting_bytes + most.needs_bytes + demands.shared_bytes,
            largest=largest,
        )
    return found


def running_words(plan: PlanParts, block: str) -> Iterator[str]:
    """What a block needs while it runs, and which block decides what its device needs; nothing without a workload."""
    demands = plan.account.demands
    demand = demands.blocks.get(block) if demands else None
    if demands is None or demand is None:
        return
    kept = f"keeps a cache of {one_size(demand.cache_bytes)} and " if demand.cache_bytes else ""
    lasting = f", of which {one_size(demand.lasting_bytes)} last" if demand.lasting_bytes else ""
    needs = one_size(demand.needs_bytes + demand.lasting_bytes)
    name = one_line(block) or "The model"
    yield f"{name} {kept}needs {needs} while it runs{lasting}."
    if demand.resting_bytes:
        yield f"{one_size(demand.resting_bytes)} of its cache rest on the CPU while other blocks run."
    runs_on = device_of(block, plan.execution_map)
    runs_on = device_of(block, plan.device_map) if runs_on is None else runs_on
    if runs_on is None:
        return
    running = running_by_device(demands, plan.device_map, plan.execution_map).get(runs_on)
    if running is not None:
        most = demands.blocks[running.largest]
        who = "It" if running.largest == block else one_line(running.largest)
        place = runner_name(runs_on)
        yield f"{who} needs most at once of what runs on {place}: {one_size(most.needs_bytes)}."
