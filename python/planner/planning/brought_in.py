"""What dispatch brings in of offloaded blocks: tied weights under each of their names, whichever of them was met first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import ceil

from planner.devices.keys import DeviceKey
from planner.names import nearest_key
from planner.strategies.staying import StayingBuffers

__all__ = ["BroughtIn", "brought_in"]


@dataclass(frozen=True, slots=True)
class BroughtIn:
    """Bytes by offloaded block.

    Args:
        block_bytes: what is brought in while it runs.
        never_ahead_bytes: what of that is not copied ahead: modules with a tensor that others have, too, find out when they run
            whether it is there.
    """

    block_bytes: Mapping[str, int]
    never_ahead_bytes: Mapping[str, int]


def brought_in(
    staying: StayingBuffers,
    offloaded: Collection[str],
    execution: Mapping[str, DeviceKey],
    stays: Mapping[str, int],
) -> BroughtIn:
    """What is brought in of each block that runs elsewhere than it lies.

    Args:
        staying: the model, and its buffers.
        offloaded: these blocks.
        execution: by block, where it runs; all others lie there.
        stays: by block, bytes of its buffers that are not brought in.

    Cost: O(blocks), and O(names of tensors) where weights are tied.
    """
    sizes = staying.stored_bytes
    offloaded = frozenset(offloaded)
    found = Counter({block: int(sizes.get(block, 0)) - stays.get(block, 0) for block in offloaded})
    if not (offloaded and staying.blocks.layout.has_ties):
        return BroughtIn(+found, {})
    shared: dict[str, int | float] = {}
    for names in staying.blocks.layout.tied_groups():
        size = max(sizes.get(name, 0) for name in names)
        blocks: dict[str, list[str]] = defaultdict(list)
        for name in names:
            block = nearest_key(name, execution)
            if block is not None:
                blocks[block].append(name)
        resident = {execution[block] for block in blocks.keys() - offloaded}
        arriving = [block for block in blocks.keys() & offloaded if execution[block] not in resident]
        for block in blocks.keys() & offloaded:
            is_counted = any(name in sizes for name in blocks[block])
            found[block] += ceil(size) * ((block in arriving) - is_counted)
        resting = [name for block in arriving for name in blocks[block]]
        if _are_of_several(staying, resting):
            shared.update(dict.fromkeys(resting, size))
    return BroughtIn(+found, _never_ahead(staying, shared, execution))


def _are_of_several(staying: StayingBuffers, names: list[str]) -> bool:
    """Whether tensors are in several modules, not in one that has several names. Where that cannot be told, it is taken for one,
    which is copied ahead: that takes more."""
    return len({staying.module_classes.get(name.rpartition(".")[0]) for name in names}) > 1


def _never_ahead(
    staying: StayingBuffers, shared: Mapping[str, int | float], execution: Mapping[str, DeviceKey]
) -> dict[str, int]:
    """By block, all that is brought in of the modules with these tensors."""
    found: Counter[str] = Counter()
    modules = {name.rpartition(".")[0] for name in shared}
    for name in staying.tensor_names if modules else ():
        block = nearest_key(name, execution)
        if block is not None and name.rpartition(".")[0] in modules and name not in staying.names:
            found[block] += ceil(shared.get(name, staying.stored_bytes.get(name, 0)))
    return dict(found)
