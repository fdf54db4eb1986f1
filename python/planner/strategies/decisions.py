"""What `auto` decided, as reasons."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from planner.choices import AutoRule
from planner.devices.budgets import DeviceBudget
from planner.model.blocks import Blocks
from planner.plans.parts import Reason

__all__ = ["told"]


def told(
    blocks: Blocks,
    device_budgets: Sequence[DeviceBudget],
    *,
    homes: Sequence[int],
    oversized: Sequence[str | None],
    taken_bits: Sequence[int],
    offloaded: Collection[int],
) -> tuple[Reason, ...]:
    """The reasons of a plan, in execution order.

    Args:
        blocks: the model.
        device_budgets: the devices.
        homes: by unit, the index of its device.
        oversized: by unit, a block of it that is larger than every accelerator.
        taken_bits: by device, what is used or kept there.
        offloaded: the units that are.

    Returns:
        One for each unit at home, one more for each accelerator that has no room for an offloaded one, one for the first unit
        where it lies on an accelerator while others do not, and one for experts that could not be taken apart.

    Cost: O(units · devices), and the sizes of the model where something is offloaded.
    """
    left_bytes = [
        budget.capacity_bytes - bits // 8 for budget, bits in zip(device_budgets, taken_bits, strict=True)
    ]
    slow = frozenset(offloaded)
    first = _first_unit(blocks) if slow else None
    found: list[Reason] = []

    def tell(rule: AutoRule, unit: int, name: str, device: int, available_bytes: int) -> None:
        found.append(
            Reason(
                rule=rule,
                name=name,
                device=device_budgets[device].device,
                needed_bytes=blocks.unit_bytes[unit],
                available_bytes=available_bytes,
            )
        )

    for unit, (home, block) in enumerate(zip(homes, oversized, strict=True)):
        name, room_bytes = (
            blocks.unit_name(unit) if block is None else block,
            device_budgets[home].capacity_bytes,
        )
        if unit not in slow:
            tell("resident", unit, name, home, room_bytes)
            if unit == first:
                tell("first_block", unit, name, home, room_bytes)
            continue
        tell("offloaded" if block is None else "oversized", unit, name, home, room_bytes)
        for device, budget in enumerate(device_budgets):
            if budget.kind == "accelerator":
                tell("no_room", unit, name, device, left_bytes[device])
    for name, unit in blocks.fused_experts:
        tell("fused_experts", unit, name, homes[unit], device_budgets[homes[unit]].capacity_bytes)
    return tuple(found)


def _first_unit(blocks: Blocks) -> int | None:
    """The first unit with a parameter, as the search has it: it says where a model's inputs belong."""
    return next(_with_parameters(blocks), None)


def _with_parameters(blocks: Blocks) -> Iterator[int]:
    # Tensors count where they are met first, so the first parameter counts in its own unit.
    all_bytes, buffer_bytes = blocks.layout.stored_sizes(), blocks.layout.stored_sizes("buffers")
    for unit, names in enumerate(blocks.unit_names):
        if any(all_bytes.get(name, 0) > buffer_bytes.get(name, 0) for name in names):
            yield unit
