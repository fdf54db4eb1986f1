"""What a model's own code, which belongs to no block, had brought from one device to another."""

from __future__ import annotations

from dataclasses import dataclass

from planner.devices.keys import DeviceKey
from planner.names import counted
from planner.units import format_bytes

__all__ = ["Crossing"]


@dataclass(frozen=True, slots=True)
class Crossing:
    """Tensors that one operator of a model's own code needed on another device than they lay on.

    Args:
        where: the line of the model's code, as ``"/path/to/file.py:12"``.
        operator: what was called there, as torch names it.
        from_device: where the tensors lay.
        to_device: where the operator was computed.
        count: how many tensors were brought, over all forwards.
        size_bytes: their bytes together.

    Example:
        >>> print(Crossing("net.py:12", "add", 1, 0, 2, 4096))
        net.py:12: add brought 2 tensors (4.00 KiB) from 1 to 0
    """

    where: str
    operator: str
    from_device: DeviceKey
    to_device: DeviceKey
    count: int
    size_bytes: int

    def __str__(self) -> str:
        what = counted(self.count, "tensor")
        return (
            f"{self.where}: {self.operator} brought {what} ({format_bytes(self.size_bytes)}) from {self.from_device} to "
            f"{self.to_device}"
        )
