"""Constraints on modules, turned into the devices where each unit may lie.

A glob stands for the modules and tensors that it matches, each as if it had been named, and makes each of them a block of its own
where it lies inside a block. Of names that speak for one block, the nearest is heard:

- of pins of which one is a glob's, that of the inner name; of one name, the pin that is no glob's;
- of what is forbidden, everything, but where one name has both, what is no glob's.

Names that were written out do not yield to each other: they must agree, and so must globs that match the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from planner.choices import Mode
from planner.devices.keys import DeviceKey, device_kind
from planner.devices.nodes import plan_device
from planner.errors import InvalidConstraintError
from planner.model.blocks import Blocks
from planner.model.globs import matched_names
from planner.model.layout import Layout
from planner.names import named

__all__ = ["Constraints", "Wanted", "allowed_devices"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of one module or tensor.

    Args:
        name: its path.
        devices: where it is to lie, or may not lie.
        said: the name or glob that the user wrote.
    """

    name: str
    devices: tuple[DeviceKey, ...]
    said: str

    @property
    def is_matched(self) -> bool:
        """Whether a glob speaks for it, and not its own name."""
        return self.said != self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What the user wants of single modules, with globs written out.

    Args:
        pin: where something is to lie.
        forbid: where something may not lie.
        keep_together: groups of paths that share a device.
        apart: paths that globs matched: where they lie inside a block, they are blocks of their own.
    """

    pin: tuple[Wanted, ...] = ()
    forbid: tuple[Wanted, ...] = ()
    keep_together: tuple[tuple[str, ...], ...] = ()
    apart: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        layout: Layout,
        *,
        pin: Mapping[str, DeviceKey],
        forbid: Mapping[str, tuple[DeviceKey, ...]],
        keep_together: Iterable[Sequence[str]],
    ) -> Constraints:
        """The constraints that settings mean in a model.

        Raises:
            InvalidConstraintError: a name or glob for which the model has nothing. Fields: ``names``, ``suggestions``.
        """
        pins = matched_names(layout, "pin", list(pin))
        forbidden = matched_names(layout, "forbid", list(forbid))
        groups = [matched_names(layout, "keep_together", group) for group in keep_together]
        return cls(
            pin=tuple(Wanted(name, (pin[said],), said) for said, names in pins.items() for name in names),
            forbid=tuple(
                Wanted(name, forbid[said], said) for said, names in forbidden.items() for name in names
            ),
            keep_together=tuple(
                tuple(name for names in group.values() for name in names) for group in groups
            ),
            apart=tuple(
                name
                for found in (pins, forbidden, *groups)
                for said, names in found.items()
                if names != (said,)
                for name in names
            ),
        )

    def require_devices(self) -> None:
        """Refuses what is no device. Raises InvalidDevicesError."""
        for device in dict.fromkeys(device for each in (*self.pin, *self.forbid) for device in each.devices):
            plan_device(device)


def allowed_devices(
    blocks: Blocks, constraints: Constraints, devices: Sequence[DeviceKey], mode: Mode = "any"
) -> list[tuple[int, int]]:
    """Masks of devices for the units that may not lie everywhere.

    Args:
        blocks: the model.
        constraints: pins and forbidden devices.
        devices: those with budgets, in order.
        mode: what may hold weights.

    Returns:
        Pairs of a unit and a mask, in which bit i stands for the i-th device; sorted by unit.

    Raises:
        InvalidConstraintError: a device that is not there, or a unit that may lie nowhere. Fields: ``names``.
    """
    if not constraints.pin and not constraints.forbid:
        return []
    index = {device: number for number, device in enumerate(devices)}
    everywhere = (1 << len(devices)) - 1
    masks: dict[int, int] = {}
    reasons: dict[int, list[str]] = {}
    for what, wanted in (("pin", constraints.pin), ("forbid", constraints.forbid)):
        for unit, heard in _by_unit(blocks, wanted, is_nearest_only=what == "pin").items():
            for each in heard:
                listed = dict.fromkeys(each.devices)
                mask = sum(1 << _device_index(device, index, what, each.said) for device in listed)
                masks[unit] = masks.get(unit, everywhere) & (mask if what == "pin" else everywhere & ~mask)
                reason = f"{what} {each.said or 'the model'} = {', '.join(map(str, each.devices))}"
                if reason not in reasons.setdefault(unit, []):
                    reasons[unit].append(reason)
    usable = sum(1 << number for device, number in index.items() if is_usable(device, devices, mode))
    for unit, mask in masks.items():
        if mask & usable == 0:
            raise InvalidConstraintError(
                f"{named(blocks.unit_name(unit))} may lie nowhere: {'; '.join(reasons[unit])}; mode = {mode}; blocks that share tensors or are kept "
                "together need one device",
                names=tuple(reasons[unit]),
                suggestions=(),
            )
    return sorted(masks.items())


def is_usable(device: DeviceKey, devices: Sequence[DeviceKey], mode: Mode) -> bool:
    """Whether a mode lets anything lie on a device; where no accelerator is named, full or not, the cpu takes its place."""
    kind = device_kind(device)
    has_accelerator = any(device_kind(other) == "accelerator" for other in devices)
    if mode == "gpu_only":
        return kind == "accelerator" or (kind == "cpu" and not has_accelerator)
    return mode == "any" or kind != "disk"


def _by_unit(blocks: Blocks, wanted: Sequence[Wanted], *, is_nearest_only: bool) -> dict[int, list[Wanted]]:
    """By unit inside or around a name, what is heard of what is wanted of it."""
    speaking: dict[int, list[Wanted]] = {}
    for each, units in zip(wanted, blocks.columns.units_of([each.name for each in wanted]), strict=True):
        for unit in units:
            speaking.setdefault(unit, []).append(each)
    if any(each.is_matched for each in wanted):
        return {unit: _heard(entries, is_nearest_only) for unit, entries in speaking.items()}
    return speaking


def _heard(entries: list[Wanted], is_nearest_only: bool) -> list[Wanted]:
    """Those that yield to no other; see the head of this file."""
    written = {each.name for each in entries if not each.is_matched}
    above = {name for each in entries for name in _names_around(each.name)} if is_nearest_only else set()
    above_matched = {
        name for each in entries if each.is_matched for name in _names_around(each.name) if is_nearest_only
    }
    return [
        each
        for each in entries
        if (
            each.name not in above and each.name not in written
            if each.is_matched
            else each.name not in above_matched
        )
    ]


def _names_around(name: str) -> list[str]:
    """The names of all modules around one, the root's among them."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))] if name else []


def _device_index(device: DeviceKey, index: Mapping[DeviceKey, int], what: str, name: str) -> int:
    key = plan_device(device)
    if key not in index:
        raise InvalidConstraintError(
            f"{what} of {named(name)} names device {key!r}, which has no budget; devices with one are {list(index)}",
            names=(name,),
            suggestions=(),
        )
    return index[key]
