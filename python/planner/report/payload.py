"""The data of the HTML report: rows and reasons as JSON that can stand inside a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from planner.plans.bars import device_classes
from planner.plans.parts import PLACING, DevicePlan, PlanParts
from planner.plans.places import place_name
from planner.plans.runs import blocks_of
from planner.plans.why_not import WHY_NOT, placed_by_user, ranks, rooms_bytes
from planner.plans.wording import UNDECIDED, WORDS
from planner.report.rows import Rows
from planner.units import format_bytes

__all__ = ["page_json", "payload"]

_EXACT = 1 << 53  # up to here, JavaScript's numbers are exact integers
_UNSAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def payload(plan: PlanParts, rows: Rows) -> dict[str, Any]:
    """What the script of the report draws.

    Args:
        plan: gives devices and reasons.
        rows: give the tree.

    Returns:
        Plain data. Columns have one item for each row: ``names`` are local, ``parents`` point up, ``homes`` and ``runs``
        are devices by index, -1 for several and -2 for none. ``blocks`` are rows in the order of execution. By device, ``kept`` is
        what it has room for beside weights, in words, bytes and style, and ``rooms`` are what weights may take and what is left of that. A reason is [rule, row, device, needed, available].
        ``running`` are facts of a block, in terms and words, with a workload. Numbers beyond 2^53 are strings, because a browser would round them.
    """
    index = {name: row for row, name in enumerate(rows.names)}
    return {
        "devices": [
            {"id": str(device), "style": style, "place": place_name(device)}
            for device, style in zip(rows.devices, device_classes(rows.devices), strict=True)
        ],
        "budgets": [_limit(device.budget_bytes) for device in plan.devices],
        "kept": [
            [[words, _exact(size), style] for words, size, style in _kept(device) if size]
            for device in plan.devices
        ],
        "running": [[index[name], facts] for name, facts in _running(plan) if name in index],
        "rooms": [[_limit(room), _limit(free)] for room, free in rooms_bytes(plan)],
        "ranks": ranks(plan),
        "placed": [index[name] for name in placed_by_user(plan, rows.names)],
        "blocks": [row for block in blocks_of(plan) for row in [index.get(block.first)] if row is not None],
        "names": [
            name[len(rows.names[above]) + 1 :] if above > 0 else name
            for name, above in zip(rows.names, rows.parents, strict=True)
        ],
        "parents": rows.parents,
        "bytes": [_exact(size) for size in rows.sizes_bytes],
        "homes": rows.homes,
        "runs": rows.runs,
        "originals": [[row, first] for row, first in rows.originals.items()],
        "reasons": [
            [
                reason.rule,
                _row(index, reason.name),
                str(reason.device),
                _exact(reason.needed_bytes),
                None if reason.available_bytes is None else _exact(reason.available_bytes),
            ]
            for reason in plan.account.reasons
        ],
        "words": dict(WORDS),
        "placing": PLACING,
        "undecided": UNDECIDED,
        "whyNot": dict(WHY_NOT),
    }


def page_json(data: Any) -> str:
    """JSON that can stand between script tags: plain ASCII without any character that HTML reads.

    Example:
        >>> page_json("</script>é")
        '"\\\\u003c/script\\\\u003e\\\\u00e9"'
    """
    return json.dumps(data, ensure_ascii=True, separators=(",", ":")).translate(_UNSAFE)


def _kept(device: DevicePlan) -> Iterator[tuple[str, int, str]]:
    """What a device has room for beside the weights that lie there."""
    yield "buffers of offloaded blocks", device.buffer_bytes, "buffers"
    yield "cache", device.cache_bytes, "cache"
    yield "activations", device.activation_bytes, "activations"
    yield "allocator's margin", device.margin_bytes, "margin"
    yield "kept for streaming", device.reserved_bytes, "reserved"


def _running(plan: PlanParts) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """By block, what it needs while it runs; nothing without a workload."""
    demands = plan.account.demands
    for name, demand in demands.blocks.items() if demands else ():
        facts = [("keeps a cache of", demand.cache_bytes), ("results that last", demand.lasting_bytes)]
        facts += [("needs at once", demand.needs_bytes), ("rests on the CPU", demand.resting_bytes)]
        yield name, [(term, format_bytes(size)) for term, size in facts if size]


def _exact(size_bytes: int | float) -> int | float | str:
    return size_bytes if abs(size_bytes) < _EXACT else str(size_bytes)


def _limit(size_bytes: int | None) -> int | float | str | None:
    return None if size_bytes is None else _exact(size_bytes)


def _row(index: dict[str, int], name: str) -> int:
    """The row of a name, or the nearest around it."""
    while name not in index:
        name = name.rpartition(".")[0]
    return index[name]
