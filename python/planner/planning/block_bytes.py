"""The blocks of a plan with their bytes, so that a plan tells its runs without the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import ceil

from planner.devices.keys import DeviceKey
from planner.model.blocks import Blocks
from planner.names import device_of, nearest_key


def block_bytes(
    blocks: Blocks, device_map: Mapping[str, DeviceKey], execution_map: Mapping[str, DeviceKey]
) -> dict[str, int]:
    """Stored bytes of each block in the order of execution; of a block that a map takes apart, of its parts.

    Args:
        blocks: the model.
        device_map: where it lies.
        execution_map: what runs elsewhere.

    Guarantee: each tensor is counted once, where it is met first; by device, bytes add up to those that the plan says are used.

    Cost: O(modules + tensors).
    """
    names = ["", *blocks.layout.tree.columns.names()]
    sizes = blocks.layout.stored_sizes()
    whole = {name for unit in blocks.unit_names for name in unit}
    opened = _opened(whole, {*device_map, *execution_map})
    found: dict[str, int] = {}
    seen: dict[DeviceKey | None, float] = defaultdict(float)
    for name in names:
        is_part = name.rpartition(".")[0] in opened and bool(name) and name in sizes
        if name in opened or not (is_part or name in whole):
            continue
        # Elements of half a byte: rounded along each device, so that a device's sum is rounded once.
        device = device_of(name, device_map)
        before = ceil(seen[device])
        seen[device] += sizes.get(name, 0)
        found[name] = ceil(seen[device]) - before
    return found


def _opened(whole: set[str], keys: set[str]) -> set[str]:
    """Blocks that have one of the keys inside, and modules between the two."""
    opened: set[str] = set()
    for key in keys - whole:
        if nearest_key(key, whole) is not None:
            above = key
            while above not in whole:
                above = above.rpartition(".")[0]
                opened.add(above)
    return opened
