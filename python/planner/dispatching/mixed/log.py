"""What the model's own code had brought together, counted for one dispatch."""

from __future__ import annotations

import threading
from typing import Any

import torch

from planner.devices.keys import DeviceKey, canonical_device
from planner.dispatching.mixed.crossing import Crossing

__all__ = ["CrossingLog"]

_Row = tuple[str, str, torch.device, torch.device]


class CrossingLog:
    """Counts tensors and bytes by line, operator and devices; from any thread.

    Guarantee: a copy of a model counts anew.
    """

    __slots__ = ("_lock", "_rows")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[_Row, tuple[int, int]] = {}

    def __reduce__(self) -> Any:
        return (CrossingLog, ())

    def note(
        self, where: str, operator: str, from_device: torch.device, to_device: torch.device, size_bytes: int
    ) -> None:
        """One tensor was brought."""
        key = (where, operator, from_device, to_device)
        with self._lock:
            count, before_bytes = self._rows.get(key, (0, 0))
            self._rows[key] = (count + 1, before_bytes + size_bytes)

    def crossings(self) -> tuple[Crossing, ...]:
        """All that was counted, in the order in which it was first met."""
        with self._lock:
            rows = list(self._rows.items())
        return tuple(
            Crossing(where, operator, _key(from_device), _key(to_device), count, size_bytes)
            for (where, operator, from_device, to_device), (count, size_bytes) in rows
        )


def _key(device: torch.device) -> DeviceKey:
    return canonical_device(device)
