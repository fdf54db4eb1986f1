"""A layout cut into units, and constraints turned into the devices where each unit may lie."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from planner import _core
from planner.choices import BlockGranularity, Mode
from planner.devices.keys import DeviceKey, canonical_device, device_kind
from planner.errors import InvalidConstraintError
from planner.model.layout import Layout
from planner.names import named

_MOST_CANDIDATES = 2000  # names that a misspelt one is compared with


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What the user wants of single modules, by path."""

    pin: Mapping[str, DeviceKey] = field(default_factory=dict)
    forbid: Mapping[str, tuple[DeviceKey, ...]] = field(default_factory=dict)
    keep_together: tuple[tuple[str, ...], ...] = ()


class Blocks:
    """Units of a model: blocks that are placed as a whole, joined where they share tensors or are kept together.

    Args:
        layout: the model.
        granularity: "block", or "expert" for each numbered expert inside a block.
        no_split: paths of modules that stay whole.
        split: paths of blocks that are taken apart all the same.
        keep_together: groups of paths that share a device.

    Guarantee: immutable.

    Cost: O(modules + tensors).
    """

    def __init__(
        self,
        layout: Layout,
        *,
        granularity: BlockGranularity = "block",
        no_split: Iterable[str] = (),
        split: Iterable[str] = (),
        keep_together: Iterable[Iterable[str]] = (),
    ) -> None:
        self.layout = layout
        self.granularity = granularity
        self.columns = _core.Blocks(
            layout.columns,
            granularity=granularity,
            no_split=list(no_split),
            split=list(split),
            keep_together=[list(names) for names in keep_together],
        )

    @cached_property
    def unit_names(self) -> tuple[tuple[str, ...], ...]:
        """The modules and tensors of each unit."""
        return tuple(map(tuple, self.columns.unit_names()))

    @cached_property
    def unit_bytes(self) -> tuple[int, ...]:
        """Stored bytes of each unit, rounded up."""
        return tuple(-(-bits // 8) for bits in self.columns.unit_bits())

    @cached_property
    def fused_experts(self) -> tuple[tuple[str, int], ...]:
        """Modules, with their units, that were to be taken apart by expert, and hold all experts in one tensor."""
        return tuple(self.columns.fused_experts()) if self.granularity == "expert" else ()

    @property
    def block_count(self) -> int:
        """Blocks, before anything joins them."""
        return self.columns.block_count

    def unit_name(self, unit: int) -> str:
        """A name for a unit: that of its first module or tensor."""
        names = self.unit_names[unit]
        return names[0] if names else ""


def expand_classes(layout_tree: _core.Tree, names: Iterable[str]) -> list[str]:
    """Names of the model's classes that are, or derive from, one of the classes named.

    Raises:
        InvalidConstraintError: the model has no such class. Fields: ``names``, ``suggestions``.
    """
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return []
    derived, unknown = layout_tree.derived_classes(wanted)
    if unknown:
        known = sorted({name for name, _ in layout_tree.class_bases()})
        raise _unknown("no module of the model is of class", unknown, known)
    return derived


def require_names(layout: Layout, what: str, names: Sequence[str]) -> None:
    """Refuses names that the model does not have.

    Args:
        layout: the model.
        what: the setting that they are from, for the message.
        names: paths of modules or tensors.

    Raises:
        InvalidConstraintError: unknown names. Fields: ``names``, ``suggestions`` (the nearest ones that the model has).

    Cost: one look-up a name; all names of the model are made only where one is unknown.
    """
    if not names:
        return
    known = layout.tree.columns.knows(list(names))
    unknown = [name for name, is_known in zip(names, known, strict=True) if not is_known]
    if unknown:
        raise _unknown(f"{what} names nothing in the model:", unknown, layout.tree.columns.names())


def _unknown(message: str, unknown: list[str], known: Sequence[str]) -> InvalidConstraintError:
    nearest = [
        match
        for name in unknown[:5]
        for match in difflib.get_close_matches(name, known[:_MOST_CANDIDATES], n=1, cutoff=0.5)
    ]
    hint = f"; did you mean {', '.join(map(repr, nearest))}?" if nearest else ""
    return InvalidConstraintError(
        f"{message} {', '.join(map(repr, unknown))}{hint}", names=tuple(unknown), suggestions=tuple(nearest)
    )


def allowed_devices(
    blocks: Blocks, constraints: Constraints, devices: Sequence[DeviceKey], mode: Mode = "any"
) -> list[tuple[int, int]]:
    """Masks of devices for the units that may not lie everywhere.

    Args:
        blocks: the model.
        constraints: pins and forbidden devices by path.
        devices: those with budgets, in order.
        mode: what may hold weights.

    Returns:
        Pairs of a unit and a mask, in which bit i stands for the i-th device; sorted by unit.

    Raises:
        InvalidConstraintError: a name or device that is not there, or a unit that may lie nowhere. Fields: ``names``.
    """
    if not constraints.pin and not constraints.forbid:
        return []
    index = {device: number for number, device in enumerate(devices)}
    everywhere = (1 << len(devices)) - 1
    masks: dict[int, int] = {}
    reasons: dict[int, list[str]] = {}
    for what, paths in (("pin", constraints.pin), ("forbid", constraints.forbid)):
        require_names(blocks.layout, what, list(paths))
        for (name, value), units in zip(paths.items(), blocks.columns.units_of(list(paths)), strict=True):
            listed = value if isinstance(value, tuple) else (value,)
            mask = sum(1 << _device_index(device, index, what, name) for device in dict.fromkeys(listed))
            for unit in units:
                masks[unit] = masks.get(unit, everywhere) & (mask if what == "pin" else everywhere & ~mask)
                reasons.setdefault(unit, []).append(
                    f"{what} {name or 'the model'} = {', '.join(map(str, listed))}"
                )
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


def _device_index(device: DeviceKey, index: Mapping[DeviceKey, int], what: str, name: str) -> int:
    key = canonical_device(device)
    if key not in index:
        raise InvalidConstraintError(
            f"{what} of {named(name)} names device {key!r}, which has no budget; devices with one are {list(index)}",
            names=(name,),
            suggestions=(),
        )
    return index[key]
