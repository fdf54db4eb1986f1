"""What would make a plan better, in words that can be pasted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from planner.choices import DeviceKind
from planner.devices.keys import DeviceKey, device_kind
from planner.plans.columns import one_size
from planner.plans.parts import DevicePlan, PlanParts
from planner.plans.places import listed_places
from planner.plans.verdict import holds_all

__all__ = [
    "Advice",
    "advice",
    "format_words",
    "is_too_full",
    "left_bytes",
    "more_room",
]

_ENOUGH_BYTES = 256 << 20  # to run in, on any card
_ENOUGH_SHARE = 20  # or this part of the card
_MOST_HEADROOM_BYTES = 2 << 30
_MOST_DEVICES = 4  # amounts that differ from card to card, before only the least is said
_BINDING = ("pin.", "forbid.")
_BITS = {"int8": 8, "fp8": 8}


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do, and for what.

    Args:
        aim: as "To avoid it".
        ways: each alone is enough.
    """

    aim: str
    ways: tuple[str, ...]


def advice(plan: PlanParts, *, is_shell: bool = True) -> tuple[Advice, ...]:
    """What would avoid offloading, and what the plan needs to run.

    Args:
        plan: the plan.
        is_shell: say options as the command has them, otherwise as `plan()` has them.

    Guarantee: sizes are rounded up, so that they are enough as they are said; a format is said only where the whole model
        fits in it.
    """
    found = []
    shortfall = plan.account.shortfall
    # Where no room would be enough, something was told to lie elsewhere, in whatever format.
    if shortfall is not None and shortfall.more_bytes and not holds_all(plan):
        formats = _fitting_formats(_accelerator_rooms(plan), shortfall.smaller_formats, is_shell=is_shell)
        found.append(Advice("To avoid it", (*more_room(shortfall.more_bytes), *formats)))
    full = [device for device in plan.devices if is_too_full(device)]
    if full and _has_room_elsewhere(plan, full):
        found.append(Advice("To run it", (_headroom_words(full, is_shell),)))
    return tuple(found)


def left_bytes(device: DevicePlan) -> int | None:
    """What the plan leaves of a device; None is without limit."""
    if device.budget_bytes is None:
        return None
    return max(0, device.budget_bytes - device.taken_bytes)


def is_too_full(device: DevicePlan) -> bool:
    """Whether an accelerator that runs something has hardly room for more than weights."""
    left = left_bytes(device)
    is_running = (
        device.kind == "accelerator" and bool(device.taken_bytes) and not device.running_bytes
    )  # what runs is in the plan where a workload is
    return (
        is_running
        and left is not None
        and left < min(_ENOUGH_BYTES, (device.budget_bytes or 0) // _ENOUGH_SHARE)
    )


def more_room(more_bytes: Mapping[DeviceKey, int]) -> Iterator[str]:
    """How much more on which device; equal cards are one way.

    Example:
        >>> list(more_room({0: 100, 1: 100, 2: 100, "cpu": 300}))
        ['100 B more on one of GPUs 0-2', '300 B more in RAM']
    """
    alike: dict[tuple[int, DeviceKind], list[DeviceKey]] = {}
    for device, size in more_bytes.items():
        alike.setdefault((size, device_kind(device)), []).append(device)
    ways = list(alike) if len(alike) <= _MOST_DEVICES else [min(alike, key=lambda way: way[0])]
    for way in ways:
        yield f"{one_size(way[0], up=True)} more {_one_of(alike[way])}"


def _one_of(devices: Sequence[DeviceKey]) -> str:
    if len(devices) == 2:
        return f"on {listed_places(devices, 'or')}"
    if len(devices) > 2:
        return f"on one of {listed_places(devices, 'or')}"
    return {"cpu": "in RAM", "disk": "on disk"}.get(str(devices[0]), f"on {listed_places(devices)}")


@dataclass(frozen=True, slots=True)
class _Room:
    """Bytes of a device that blocks fill for certain, whatever their sizes; 0 where memory is shared with another."""

    size_bytes: int

    @classmethod
    def of(cls, device: DevicePlan, lost_bytes: int) -> _Room:
        """The room of a device, of which at most so much stays empty."""
        if device.pool is not None:
            return cls(0)
        return cls(max(0, (device.budget_bytes or 0) - device.headroom_bytes - lost_bytes))


def _places_freely(plan: PlanParts) -> bool:
    """Whether any block may lie on any device, as far as there is room: only then does room alone say what would fit."""
    settings = plan.account.settings
    strategy, together = settings.get("strategy.type"), settings.get("keep_together")
    is_auto = strategy is None or strategy.value == "auto"
    is_bound = any(name.startswith(_BINDING) for name in settings)
    return is_auto and not is_bound and not (together is not None and together.value)


def _fitting_formats(rooms: Sequence[_Room], formats: Mapping[str, int], *, is_shell: bool) -> Iterator[str]:
    """The widest format in which the whole model fits for certain."""
    room_bytes = sum(room.size_bytes for room in rooms)
    fitting = {name: size for name, size in formats.items() if size <= room_bytes}
    if fitting:
        name = max(fitting, key=fitting.__getitem__)
        yield format_words(name, fitting[name], is_shell=is_shell)


def format_words(name: str, size_bytes: int, *, is_shell: bool) -> str:
    """A smaller format, with the model's size in it.

    Example:
        >>> format_words("fp8", 70 << 30, is_shell=True)
        '8-bit weights (70 GiB): --dtype fp8'
    """
    option = f"--dtype {name}" if is_shell else f"dtype={name!r}"
    return f"{_BITS.get(name, 4)}-bit weights ({one_size(size_bytes)}): {option}"


def _accelerator_rooms(plan: PlanParts) -> list[_Room]:
    """Block after block, each device is filled up to less than one block."""
    if not _places_freely(plan):
        return []
    largest = max(plan.account.block_bytes.values(), default=0)
    return [_Room.of(device, largest) for device in plan.devices if device.kind == "accelerator"]


def _has_room_elsewhere(plan: PlanParts, full: Sequence[DevicePlan]) -> bool:
    """Whether what would leave the full devices has a place: what leaves one of them may take a block with it."""
    mode = plan.account.settings.get("mode")
    left_out = {"gpu_only": ("cpu", "disk"), "no_disk": ("disk",)}.get(str(mode.value) if mode else "", ())
    largest = max(plan.account.block_bytes.values(), default=0)
    leaving = sum(_headroom_bytes(device) + largest for device in full)
    names = {device.id for device in full}
    others = [device for device in plan.devices if device.id not in names and device.kind not in left_out]
    return any(device.free_bytes is None or device.free_bytes >= leaving for device in others)


def _headroom_bytes(device: DevicePlan) -> int:
    """A round size: a power of two, a twelfth of the device or less."""
    share = min(_MOST_HEADROOM_BYTES, max(1, (device.budget_bytes or 0) // 12))
    return 1 << (share.bit_length() - 1)


def _headroom_words(full: Sequence[DevicePlan], is_shell: bool) -> str:
    sizes = {device.id: one_size(_headroom_bytes(device)).replace(" ", "") for device in full}
    if is_shell:
        options = " ".join(f"--headroom {device}={size}" for device, size in sizes.items())
    else:
        options = f"headroom={sizes!r}"
    return f"leave room on {listed_places(list(sizes))}: {options}"
