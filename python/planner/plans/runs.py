"""A plan as runs: neighbouring blocks that lie and run alike, in the order of execution."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from planner.devices.keys import DeviceKey
from planner.names import device_of, is_within, nearest_key
from planner.plans.parts import PLACING, PlanParts

__all__ = ["Run", "blocks_of", "runs_of"]


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring blocks with one home that one device runs.

    Args:
        first: the first block's name; "" is the model.
        last: the last block's name.
        count: how many there are.
        size_bytes: their stored bytes, each tensor where the model has it first, so that of tied blocks the first has them;
            None in plans that were written before plans had the bytes of blocks.
        home: where they lie.
        runs_on: where they run.
    """

    first: str
    last: str
    count: int
    size_bytes: int | None
    home: DeviceKey
    runs_on: DeviceKey


def runs_of(plan: PlanParts, inside: str = "") -> tuple[Run, ...]:
    """The runs of a plan, as long as they can be.

    Args:
        plan: the plan; nothing but what it says is read, so it may have been read from a file.
        inside: only blocks inside this module, or this block itself; with them, where no block of the module lies, those of its
            parts whose tensors all count for other blocks.

    Guarantee: bytes add up to those of the blocks; without ``inside``, by home, to those that the plan says are used.

    Cost: O(blocks · depth).

    Example:
        >>> import torch
        >>> from planner import plan
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(4)))
        >>> for run in runs_of(plan(model, max_memory={0: 1000, "cpu": 2000})):
        ...     print(run.first, run.last, run.size_bytes, run.home, run.runs_on)
        0 0 400 0 0
        1 3 1200 cpu 0
    """
    found = blocks_of(plan)
    blocks = [block for block in found if is_within(block.first, inside)]
    if inside:
        blocks = _with_shared(plan, inside, blocks, {block.first for block in found})
    return tuple(_joined(list(run)) for _, run in groupby(blocks, lambda block: (block.home, block.runs_on)))


def _with_shared(plan: PlanParts, inside: str, blocks: list[Run], names: set[str]) -> list[Run]:
    """Blocks of a module with keys of the device map that have no block, because all their tensors are met elsewhere first: those
    that lie where no block of the module does, or all where it has none."""
    device_map, execution_map = plan.device_map, plan.execution_map
    places = {key: number for number, key in enumerate(device_map)}
    around = {nearest_key(name, places) for name in names}
    homes = {block.home for block in blocks}
    found = list(blocks)
    for key, home in device_map.items():
        if home in homes or key in around or not is_within(key, inside):
            continue
        runs_on = device_of(key, execution_map)
        at = next(
            (number for number, each in enumerate(found) if _place(each, places) > places[key]), len(found)
        )
        found.insert(at, Run(key, key, 1, 0, home, home if runs_on is None else runs_on))
    return found


def _place(block: Run, places: dict[str, int]) -> int:
    """Where the key of a block stands in the device map."""
    key = nearest_key(block.first, places)
    return -1 if key is None else places[key]


def _joined(blocks: list[Run]) -> Run:
    sizes = [block.size_bytes for block in blocks if block.size_bytes is not None]
    first, last = blocks[0], blocks[-1]
    whole = sum(sizes) if len(sizes) == len(blocks) else None
    return Run(first.first, last.last, len(blocks), whole, first.home, first.runs_on)


def blocks_of(plan: PlanParts) -> tuple[Run, ...]:
    """Each block of a plan as a run of its own, in the order of execution.

    Cost: O(blocks · depth).
    """
    device_map, execution_map = plan.device_map, plan.execution_map
    sizes = dict(plan.account.block_bytes) or dict.fromkeys(_told_by_reasons(plan))
    found = []
    for name, size_bytes in sizes.items():
        home = device_of(name, device_map)
        if home is not None:
            runs_on = device_of(name, execution_map)
            found.append(Run(name, name, 1, size_bytes, home, home if runs_on is None else runs_on))
    return tuple(found)


def _told_by_reasons(plan: PlanParts) -> list[str]:
    """Names that lie on one device each, from a plan without bytes of blocks: those that decisions placed, or keys."""
    below: dict[str, list[str]] = {key: [] for key in plan.device_map}
    for name in dict.fromkeys(reason.name for reason in plan.account.reasons if reason.rule in PLACING):
        key = nearest_key(name, below)
        if key is not None:
            below[key].append(name)
    return [name for key, names in below.items() for name in names or [key]]
