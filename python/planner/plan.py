"""What a plan says of devices and decisions; immutable."""

from __future__ import annotations

from dataclasses import dataclass

from planner.devices import DeviceKey

__all__ = ["DeviceUsage", "Reason"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUsage:
    """Bytes on one device.

    Args:
        device: its key.
        budget_bytes: what weights may use; None is without limit.
        used_bytes: stored bytes of the tensors placed there, each once.
        reserved_bytes: room kept free for the largest layer when the device was left.
    """

    device: DeviceKey
    budget_bytes: int | float | None
    used_bytes: int
    reserved_bytes: int

    @property
    def free_bytes(self) -> int | float | None:
        """What is neither used nor reserved, at least 0; None is without limit."""
        if self.budget_bytes is None:
            return None
        return max(0, self.budget_bytes - self.used_bytes - self.reserved_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One decision of a strategy.

    Args:
        rule: "fits", "tied", "bound", "fallback", "split", "split_tied" or "next_device".
        name: the module or tensor decided on.
        device: the device it was measured against.
        needed_bytes: what it needs there with all that is tied to it.
        available_bytes: what the device had left after the reservation, negative if the reservation alone is too much;
            None is without limit.
    """

    rule: str
    name: str
    device: DeviceKey
    needed_bytes: float
    available_bytes: float | None
