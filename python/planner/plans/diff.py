"""What two plans place differently: as data, and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from planner.devices.keys import DeviceKey
from planner.names import device_of
from planner.units import format_bytes

__all__ = ["PlanDiff", "PlanDifference", "UsageDifference", "moved_names"]


@dataclass(frozen=True, slots=True)
class PlanDifference:
    """A name that two plans place differently; None where a plan has no device for it."""

    name: str
    left: DeviceKey | None
    right: DeviceKey | None

    def __str__(self) -> str:
        return f"{self.name or 'the model'}: {_place(self.left)} → {_place(self.right)}"


@dataclass(frozen=True, slots=True)
class UsageDifference:
    """A device that two plans fill differently, in bytes; 0 where a plan does not have it.

    Running bytes are caches, activations and the allocator's margin, of plans with a workload.
    """

    device: DeviceKey
    left_used_bytes: int
    right_used_bytes: int
    left_running_bytes: int = 0
    right_running_bytes: int = 0

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        left = (self.left_used_bytes, self.left_running_bytes)
        return left != (self.right_used_bytes, self.right_running_bytes)

    def __str__(self) -> str:
        used = _change(self.left_used_bytes, self.right_used_bytes)
        running = _change(self.left_running_bytes, self.right_running_bytes)
        parts = [f"{used} used" if used else "", f"{running} to run" if running else ""]
        return f"{self.device}: {', '.join(filter(None, parts))}"


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """What one plan places differently from another: names in execution order, and bytes by device.

    Iterating gives the names; an empty difference is false; ``str`` says it in words.
    """

    moved: tuple[PlanDifference, ...]
    usage: tuple[UsageDifference, ...]

    def __iter__(self) -> Iterator[PlanDifference]:
        return iter(self.moved)

    def __len__(self) -> int:
        return len(self.moved)

    def __bool__(self) -> bool:
        return bool(self.moved or self.usage)

    def to_data(self) -> dict[str, list[dict[str, Any]]]:
        """Plain data, ready for JSON."""
        return {
            "moved": [asdict(each) for each in self.moved],
            "usage": [asdict(each) for each in self.usage],
        }

    def __str__(self) -> str:
        if not self:
            return "everything lies where it lay"
        runs = (list(run) for _, run in groupby(self.moved, key=lambda each: (each.left, each.right)))
        return "\n".join([*map(_run, runs), *map(str, self.usage)])


def _change(left_bytes: int, right_bytes: int) -> str:
    """Nothing where both are equal."""
    left, right = format_bytes(left_bytes), format_bytes(right_bytes)
    if left_bytes != right_bytes and left == right:  # the printed figures hide the difference
        left, right = f"{left_bytes} B", f"{right_bytes} B"
    return f"{left} → {right}" if left_bytes != right_bytes else ""


def _run(run: list[PlanDifference]) -> str:
    if len(run) == 1:
        return str(run[0])
    first, last = run[0], run[-1]
    return f"{first.name} to {last.name} ({len(run)} names): {_place(first.left)} → {_place(first.right)}"


def _place(device: DeviceKey | None) -> str:
    return "nowhere" if device is None else str(device)


def moved_names(left: Mapping[str, DeviceKey], right: Mapping[str, DeviceKey]) -> tuple[PlanDifference, ...]:
    """Every key of either map that the maps place differently.

    Args:
        left: a device map.
        right: another one of the same model.
    """
    names = dict.fromkeys((*left, *right))
    pairs = ((name, device_of(name, left), device_of(name, right)) for name in names)
    # A name whose parts have keys of their own is told by its parts.
    parted = (_parents(left), _parents(right))
    return tuple(
        PlanDifference(name, before, after)
        for name, before, after in pairs
        if before != after
        and not (before is None and name in parted[0])
        and not (after is None and name in parted[1])
    )


def _parents(device_map: Mapping[str, DeviceKey]) -> set[str]:
    """Every name that a key of the map lies below."""
    parents: set[str] = set()
    for key in device_map:
        while key and key not in parents:
            key = key.rpartition(".")[0]
            parents.add(key)
    return parents
