"""Devices of several computers: which computer each is in, and what it is called there."""

from __future__ import annotations

import re
from collections.abc import Iterable

from planner.devices.keys import DeviceKey, canonical_device
from planner.spelling import node_device

__all__ = ["in_order", "local_device", "node_of", "plan_device"]


def plan_device(key: object) -> DeviceKey:
    """The one spelling of a device that a plan may be for: as :func:`planner.devices.keys.canonical_device`, or with its computer.

    Raises:
        InvalidDevicesError: not a device. Fields: ``device``.

    Example:
        >>> plan_device("a/cuda:1"), plan_device("cuda:1")
        ('a/1', 1)
    """
    found = node_device(key)
    return canonical_device(key) if found is None else f"{found[0]}/{found[1]}"


def node_of(key: DeviceKey) -> str:
    """The computer of a device; "" where there is but one.

    Example:
        >>> node_of("a/0"), node_of(0)
        ('a', '')
    """
    found = node_device(key)
    return "" if found is None else found[0]


def local_device(key: DeviceKey) -> DeviceKey:
    """What a device is called on its own computer.

    Example:
        >>> local_device("a/0"), local_device("cpu")
        (0, 'cpu')
    """
    found = node_device(key)
    return key if found is None else found[1]


def in_order(keys: Iterable[DeviceKey]) -> list[DeviceKey]:
    """Devices by computer, and there by number; numbers in names count as numbers.

    Example:
        >>> in_order(["n10/0", "n2/10", "a/1", "n2/9"])
        ['a/1', 'n2/9', 'n2/10', 'n10/0']
    """
    return sorted(keys, key=lambda key: (_natural(node_of(key)), _natural(str(local_device(key)))))


def _natural(text: str) -> list[tuple[bool, int, str]]:
    """A text by its numbers and what is between them."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
