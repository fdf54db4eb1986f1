"""Which machine a plan counts with: the one that was said, or the table of known cards for the devices that are there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from planner.devices.budgets import DeviceBudget
from planner.devices.detect import free_devices
from planner.devices.keys import DeviceKey
from planner.devices.machine import Machine
from planner.devices.table_machine import machine_of_cards
from planner.errors import InvalidDevicesError

__all__ = ["machine_for", "read_machine"]


def machine_for(said: str | None, budgets: Sequence[DeviceBudget]) -> Machine:
    """The machine that a plan counts with.

    Args:
        said: the path of a machine's file, or its text.
        budgets: the plan's devices.

    Raises:
        InvalidInputError: no such file, or no machine. Fields: ``problems``.
        InvalidDevicesError: nothing was said, and a card's name is not known, or is not in the table. Fields: ``device``.
    """
    if said is not None:
        return read_machine(said)
    cards: dict[DeviceKey, str] = {}
    for budget in budgets:
        if budget.kind == "accelerator":
            cards[budget.device] = budget.name or _detected_name(budget.device)
    return machine_of_cards(cards)


def read_machine(said: str) -> Machine:
    """The machine of a setting: its text, or the path of its file. Raises InvalidInputError. Fields: ``problems``."""
    return _of_text(said) if said.lstrip().startswith("{") else Machine.read(said)


@lru_cache(maxsize=8)
def _of_text(text: str) -> Machine:
    """Of many plans for one machine, all but the first find it read."""
    return Machine.from_json(text)


def _detected_name(device: DeviceKey) -> str:
    """What the card of a device is called that was named with its budget."""
    names = {free.device: free.name for free in free_devices()}
    name = names.get(device)
    if name:
        return name
    where = "this machine does not have it" if device not in names else "torch does not tell its name"
    raise InvalidDevicesError(
        f"how fast is device {device}? {where}: say machine='machine.json' (--machine), as planner probe --out writes it, or "
        f"machine_of_cards({{{device!r}: 'RTX 4090'}})",
        device=device,
    )
