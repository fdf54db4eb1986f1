"""What starts a plan's stages, a process each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from planner.devices.keys import DeviceKey
from planner.devices.nodes import local_device, node_of
from planner.errors import InvalidInputError
from planner.plans.parts import PlanParts
from planner.plans.stages import stages_of

__all__ = ["nodes_of", "torchrun_lines", "visible_devices"]

_SCRIPT = "generate.py"


def torchrun_lines(plan: PlanParts) -> tuple[str, ...]:
    """A line for each computer, in the order of ranks; none for a plan that is no pipeline, or is for another engine.

    A rank runs on the device that the plan has for it, so nothing says which devices a computer shows.
    """
    engine = plan.account.settings.get("engine")
    if plan.timing is None or (engine is not None and engine.value not in (None, "planner")):
        return ()
    try:
        devices = [stage.device for stage in stages_of(plan, "planner").stages]
    except InvalidInputError:
        return ()
    nodes = nodes_of(devices)
    if len(nodes) == 1:
        return (f"torchrun --nproc-per-node {len(devices)} {_SCRIPT}",)
    if len({node for node, _ in nodes}) < len(nodes):
        return ()  # ranks of one computer follow each other
    return tuple(
        f"on {node}: torchrun --nnodes {len(nodes)} --node-rank {rank} --nproc-per-node {len(own)} "
        f"--rdzv-endpoint HOST:29500 {_SCRIPT}"
        for rank, (node, own) in enumerate(nodes)
    )


def nodes_of(devices: Sequence[DeviceKey]) -> list[tuple[str, list[DeviceKey]]]:
    """By computer, in the order of ranks, its devices; one that is come back to stands twice.

    Example:
        >>> nodes_of(["a/0", "a/1", "b/0"]), nodes_of([0, 1])
        ([('a', ['a/0', 'a/1']), ('b', ['b/0'])], [('', [0, 1])])
    """
    return [(node, list(group)) for node, group in groupby(devices, node_of)]


def visible_devices(devices: Sequence[DeviceKey]) -> str | None:
    """What makes the first process of an engine see the first of these devices, and so on; None where that is so by itself.

    Example:
        >>> visible_devices(["a/1", "a/0"]), visible_devices([0, 1])
        ('1,0', None)
    """
    numbers = [local_device(device) for device in devices]
    if not all(isinstance(number, int) for number in numbers) or numbers == list(range(len(numbers))):
        return None
    return ",".join(map(str, numbers))
