"""Whether a device map has room for what running takes: caches, activations, and blocks that are brought in."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from planner.checker.devices import Device, is_device, shown
from planner.checker.findings import Finding
from planner.checker.keys import Keys, descend
from planner.checker.sizes import SizedTensor
from planner.checker.walk import NamedTensor, Walk
from planner.errors import InvalidInputError
from planner.units import format_bytes

__all__ = ["BlockNeeds", "Margin", "RunNeeds", "no_room_to_run", "read_needs"]

Margin = Callable[[Device, int], int]
"""By device and bytes of caches and activations there, what the allocator may take beyond."""


class BlockNeeds(Protocol):
    """What one block takes while it runs, beside its weights."""

    @property
    def cache_bytes(self) -> int:
        """What it keeps from forward to forward where it runs."""

    @property
    def lasting_bytes(self) -> int:
        """What of its results lasts until the forward ends."""

    @property
    def needs_bytes(self) -> int:
        """What it needs at once beyond these."""

    @property
    def resting_bytes(self) -> int:
        """What of its cache rests on the cpu."""


class RunNeeds(Protocol):
    """What a model takes while it runs, by block, as ``planner.demands`` says it."""

    @property
    def blocks(self) -> Mapping[str, BlockNeeds]:
        """By name of a module or tensor."""

    @property
    def shared_bytes(self) -> int:
        """What each device that runs anything holds once."""


def read_needs(running: object) -> RunNeeds:
    """What was handed in as ``running``. Raises InvalidInputError."""
    if not isinstance(getattr(running, "blocks", None), Mapping) or not hasattr(running, "shared_bytes"):
        raise InvalidInputError(
            f"running is what planner.demands(model, workload=…) or plan.demands says; got {shown(running)}"
        )
    return running  # type: ignore[return-value]


@dataclass(slots=True)
class _Taken:
    """Bytes on one device."""

    held: int = 0
    running_bytes: int = 0
    largest: int = 0
    staying: int = 0
    streamed: int = 0
    runs: bool = False

    def run(self, needs: BlockNeeds, streamed_bytes: int) -> None:
        """A block runs here, of which so much is brought in."""
        self.runs = True
        self.running_bytes += needs.cache_bytes + needs.lasting_bytes
        self.largest = max(self.largest, needs.needs_bytes)
        self.streamed = max(self.streamed, streamed_bytes)


def no_room_to_run(
    walk: Walk,
    sized: list[SizedTensor],
    budgets: Mapping[Device, float] | None,
    running: RunNeeds,
    runs_on: Mapping[str, Device] | None,
    margin: Margin,
    *,
    offload_buffers: bool,
) -> Iterator[Finding]:
    """Devices with room for their weights, and none for what running takes beside them.

    Args:
        walk, sized, budgets: the model on its devices.
        running: what running takes.
        runs_on: by name, where what is offloaded runs, and all else where it lies; None: on the first accelerator, as accelerate does.
        margin: what the allocator may take beyond.
        offload_buffers: saved buffers are brought in with the weights; all others stay where they run.

    Raises:
        InvalidInputError: what running takes is that of another model.
    """
    if budgets is None:
        return
    for device, here in _taken(walk, sized, running, runs_on, offload_buffers).items():
        budget = budgets.get(device)
        beside_bytes = margin(device, here.running_bytes) if here.runs else 0
        needed = here.held + here.staying + here.running_bytes + here.streamed + beside_bytes
        if budget is None or not is_device(device) or here.held > budget or needed <= budget:
            continue
        sizes = {
            "of weights": here.held,
            "of buffers of blocks that are brought in": here.staying,
            "of caches and activations": here.running_bytes,
            "for blocks that are brought in": here.streamed,
            "of the allocator's margin": beside_bytes,
        }
        parts = ", ".join(f"{format_bytes(size)} {what}" for what, size in sizes.items() if size)
        excess = format_bytes(math.ceil(needed - budget))
        message = f"device {device} would take {parts}: {excess} more than {format_bytes(budget)}"
        yield Finding("no-room-to-run", str(device), message, device, needed, budget)


def _taken(
    walk: Walk,
    sized: list[SizedTensor],
    running: RunNeeds,
    runs_on: Mapping[str, Device] | None,
    offload_buffers: bool,
) -> dict[Device, _Taken]:
    """By device, what lies there, and what running takes."""
    taken: dict[Device, _Taken] = defaultdict(_Taken)
    streamed: dict[tuple[Device, str], int] = defaultdict(int)
    executing: dict[str, set[Device]] = defaultdict(set)
    place = _Running(walk, runs_on)
    for names, holding, size in sized:
        for device in holding:
            taken[device].held += size
        places = _places(walk, names, running, place)
        for block, runs, _ in places:
            executing[block].add(runs)
        brought = {(runs, block) for block, runs, device in places if runs != device}
        if _stays(names, offload_buffers):
            for runs in {runs for runs, _ in brought} - holding:
                taken[runs].staying += size
        else:
            for where in brought:
                streamed[where] += size
    if running.blocks and not executing:
        raise InvalidInputError(
            f"running tells of {shown(next(iter(running.blocks)))}, which is no name in this model: it is that of another"
        )
    for block, device in ((block, device) for block, devices in executing.items() for device in devices):
        taken[device].run(running.blocks[block], streamed[device, block])
    for here in taken.values():
        here.running_bytes += here.largest + running.shared_bytes if here.runs else 0
    taken["cpu"].running_bytes += sum(needs.resting_bytes for needs in running.blocks.values())
    return taken


def _places(
    walk: Walk, names: list[NamedTensor], running: RunNeeds, place: _Running
) -> set[tuple[str, Device, Device]]:
    """Blocks that a tensor is in, where they run and where it lies: a tied one is in several, and each of them runs."""
    found = set()
    for named in names:
        name = walk.name(named)
        block = _around(name, running.blocks)
        if block is not None and named.device is not None:
            found.add((block, place.of(name, named.device), named.device))
    return found


def _stays(names: list[NamedTensor], offload_buffers: bool) -> bool:
    """Whether a tensor is left where it runs, wherever its block lies: a buffer under each of its names."""
    return all(named.is_buffer and not (offload_buffers and named.is_saved) for named in names)


class _Running:
    """Where tensors are when their modules run."""

    def __init__(self, walk: Walk, runs_on: Mapping[str, Device] | None) -> None:
        used = {named.device for named in walk.tensors()}
        numbers = sorted(device for device in used if isinstance(device, int))
        self.main: Device = numbers[0] if numbers else "mps" if "mps" in used else "cpu"
        self.keys = None if runs_on is None else Keys(runs_on)

    def of(self, name: str, device: Device) -> Device:
        if self.keys is None:
            return self.main if device in ("cpu", "disk") else device
        key, found = self.keys.root, self.keys.root.device
        for part in name.split("."):
            key, found = descend(key, found, part)
        return found if found is not None else self.main if device == "disk" else device


def _around(name: str, blocks: Mapping[str, BlockNeeds]) -> str | None:
    """The block that a tensor is in."""
    while name not in blocks:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return name
