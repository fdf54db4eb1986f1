"""What both pictures draw: modules and tensors in preorder, with bytes and devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.devices.keys import DeviceKey
from planner.errors import PlanMismatchError
from planner.model.in_format import layout_as
from planner.model.layout import Layout
from planner.model.tree import ModuleTree
from planner.plans.parts import PLACING, PlanParts
from planner.units import format_bytes

__all__ = ["NOTHING", "SEVERAL", "Rows", "plan_rows", "preorder", "uncounted_notices"]

SEVERAL = -1  # not all of it lies on one device
NOTHING = -2  # it holds no tensor
# Of rules that place, bytes are those of the module they go with, which has a decision of its own.
_GOING_ALONG = ("tied", "bound")
_MOST_NAMED = 5  # names that an error lists


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Modules and tensors of a plan, parents before children; row 0 is the whole model.

    Args:
        devices: keys of devices, in the plan's order; rows name them by index.
        names: dotted names; "" is the whole model.
        parents: row of the parent; -1 for the first.
        sizes_bytes: stored bytes of all that is inside, each tensor where it is met first.
        homes: device on which all of it lies, or SEVERAL, or NOTHING.
        runs: device on which all of it runs, likewise.
        originals: for further names of a tied tensor, the row where it is counted.
        uncounted_bytes: by device, what the plan uses there beyond what the rows say; negative where rows say more.
    """

    devices: tuple[DeviceKey, ...]
    names: tuple[str, ...]
    parents: tuple[int, ...]
    sizes_bytes: tuple[int | float, ...]
    homes: tuple[int, ...]
    runs: tuple[int, ...]
    originals: Mapping[int, int]
    uncounted_bytes: Mapping[DeviceKey, int]

    def children(self) -> list[list[int]]:
        """Rows inside each row, one level down."""
        inside: list[list[int]] = [[] for _ in self.names]
        for row, parent in enumerate(self.parents[1:], start=1):
            inside[parent].append(row)
        return inside


def plan_rows(plan: PlanParts, tree: ModuleTree | None = None) -> Rows:
    """The rows of a plan.

    Args:
        plan: the plan.
        tree: the model it was made for. Without it, rows are the names in the plan, down to its blocks; where the plan does not
            tell the bytes of blocks, they are those that its decisions compared.

    Raises:
        PlanMismatchError: the tree is not the one that was planned: other bytes, or names that it does not have.
            Fields: ``findings``.

    Cost: O(modules + tensors + reasons).
    """
    ties: Mapping[str, str] = {}
    if tree is None:
        names, sizes = _told_by_plan(plan)
        placed = set(names)
    else:
        layout = _planned_layout(plan, tree)
        sizes = layout.stored_sizes()
        _require_match(plan, tree, sizes.get("", 0))
        names = ["", *tree.columns.names()]
        placed = set(tree.uncovered(())[1])
        ties = {name: group[0] for group in _counted_first(layout, sizes) for name in group[1:]}
    index = {name: row for row, name in enumerate(names)}
    parents = [-1, *(index.get(name.rpartition(".")[0], 0) for name in names[1:])]
    devices = _devices(plan)
    homes, runs = (
        _joined(
            [place if name in placed else NOTHING for name, place in zip(names, places, strict=True)], parents
        )
        for places in _places(plan, devices, names, parents)
    )
    rows = Rows(
        devices=devices,
        names=tuple(names),
        parents=tuple(parents),
        sizes_bytes=tuple(sizes.get(name, 0) for name in names),
        homes=tuple(homes),
        runs=tuple(runs),
        originals={index[name]: index[first] for name, first in ties.items()},
        uncounted_bytes={},
    )
    return rows if tree is not None else _with_uncounted(plan, rows)


def uncounted_notices(rows: Rows) -> list[str]:
    """Where sizes are those that decisions compared, and do not add up to what is used."""
    return [
        f"On {device}, sizes of modules are those that decisions compared; "
        f"{format_bytes(abs(size))} {'more' if size > 0 else 'less'} are used there."
        for device, size in rows.uncounted_bytes.items()
    ]


def _told_by_plan(plan: PlanParts) -> tuple[list[str], dict[str, int | float]]:
    """Names in a plan, and the bytes of those that decisions placed."""
    named = dict.fromkeys(plan.account.block_bytes)  # first, for they stand in the order of execution
    named.update(dict.fromkeys(plan.device_map))
    named.update(dict.fromkeys(plan.execution_map))
    named.update(dict.fromkeys(reason.name for reason in plan.account.reasons))
    names = preorder(named)
    own = dict(plan.account.block_bytes) or _compared_bytes(plan)
    sizes: dict[str, int | float] = dict.fromkeys(names, 0)
    for name in reversed(names):
        sizes[name] += own.get(name, 0)
        if name:
            sizes[name.rpartition(".")[0]] += sizes[name]
    return names, sizes


def _compared_bytes(plan: PlanParts) -> dict[str, int]:
    """Bytes of a plan that was written before plans had those of blocks: what decisions compared."""
    counted = set(PLACING) - set(_GOING_ALONG)
    return {reason.name: reason.needed_bytes for reason in plan.account.reasons if reason.rule in counted}


def _planned_layout(plan: PlanParts, tree: ModuleTree) -> Layout:
    """The tree with the element types that the plan was made with."""
    special = {
        path.removeprefix("special_dtypes."): setting.value
        for path, setting in plan.account.settings.items()
        if path.startswith("special_dtypes.")
    }
    dtype = plan.account.settings.get("dtype")
    return layout_as(tree, None if dtype is None else dtype.value, special_dtypes=special)


def _require_match(plan: PlanParts, tree: ModuleTree, total_bytes: int | float) -> None:
    unknown, _ = tree.uncovered([*plan.device_map, *plan.execution_map])
    if unknown:
        shown = ", ".join(map(repr, unknown[:_MOST_NAMED]))
        raise PlanMismatchError(
            f"the plan was not made for this model, which has no {shown}; draw it without a tree, or with its own",
            findings=tuple(unknown),
        )
    planned = plan.account.source.total_bytes
    if planned != -(-total_bytes // 1):
        raise PlanMismatchError(
            f"the plan was not made for this model: it places {planned} bytes, the model has {total_bytes}; "
            "draw it without a tree, or with its own",
            findings=(planned, total_bytes),
        )


def _counted_first(layout: Layout, sizes: Mapping[str, int | float]) -> list[list[str]]:
    """Tied groups with the name first under which the tensor is counted."""
    return [sorted(group, key=lambda name: name not in sizes) for group in layout.tied_groups()]


def _devices(plan: PlanParts) -> tuple[DeviceKey, ...]:
    """The plan's devices, and any that only its maps name."""
    named = (*plan.device_map.values(), *plan.execution_map.values())
    return tuple(dict.fromkeys((*(device.id for device in plan.devices), *named)))


def _places(
    plan: PlanParts, devices: Sequence[DeviceKey], names: Sequence[str], parents: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Where each row lies and runs by its own name or those around it."""
    number = {device: index for index, device in enumerate(devices)}
    device_map, execution_map = plan.device_map, plan.execution_map
    homes, runs = [NOTHING] * len(names), [NOTHING] * len(names)
    for row, name in enumerate(names):
        above = parents[row]
        if name in device_map:
            homes[row] = runs[row] = number[device_map[name]]
        elif above >= 0:
            homes[row], runs[row] = homes[above], runs[above]
        if name in execution_map:
            runs[row] = number[execution_map[name]]
    return homes, runs


def _joined(places: Sequence[int], parents: Sequence[int]) -> list[int]:
    """Each row's place from those of its children; its own where no child has any."""
    inside = [NOTHING] * len(places)
    for row in reversed(range(len(places))):
        if inside[row] == NOTHING:
            inside[row] = places[row]
        above = parents[row]
        if above < 0 or inside[row] == NOTHING:
            continue
        inside[above] = inside[row] if inside[above] in (NOTHING, inside[row]) else SEVERAL
    return inside


def _with_uncounted(plan: PlanParts, rows: Rows) -> Rows:
    """Rows with what they leave open against the bytes that the plan says are used."""
    placed_bytes = dict.fromkeys(rows.devices, 0)
    for row, inside in enumerate(rows.children()):
        own = int(rows.sizes_bytes[row]) - sum(int(rows.sizes_bytes[child]) for child in inside)
        if own and rows.homes[row] >= 0:
            placed_bytes[rows.devices[rows.homes[row]]] += own
    open_bytes = {device.id: device.used_bytes - placed_bytes[device.id] for device in plan.devices}
    return replace(rows, uncounted_bytes={device: size for device, size in open_bytes.items() if size})


def preorder(names: Iterable[str]) -> list[str]:
    """All names and the modules around them, parents before children, siblings in the order in which they are met.

    Example:
        >>> preorder(["a.b", "c", "a.d"])
        ['', 'a', 'a.b', 'a.d', 'c']
    """
    inside: dict[str, list[str]] = {"": []}
    for name in names:
        missing = []
        while name not in inside:
            missing.append(name)
            name = name.rpartition(".")[0]
        for below in reversed(missing):
            inside[below] = []
            inside[below.rpartition(".")[0]].append(below)
    ordered, pending = [], [""]
    while pending:
        name = pending.pop()
        ordered.append(name)
        pending.extend(reversed(inside[name]))
    return ordered
