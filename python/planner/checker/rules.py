"""The rules of a device map: each yields what it finds, in the order of the model or of the map."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

from planner.checker.devices import UNLIMITED_UNLESS_LISTED, Device, is_device, names_none
from planner.checker.findings import Finding, listed
from planner.checker.keys import Keys
from planner.checker.sizes import SizedTensor, address_of
from planner.checker.suggest import MOST_CANDIDATES, nearest_in_model, nearest_of
from planner.checker.walk import NamedTensor, Walk
from planner.units import format_bytes

_MOST_SUGGESTIONS: Final = 20  # findings of one rule that get a nearest name


def uncovered(walk: Walk, keys: Keys, exempt: frozenset[str]) -> Iterator[Finding]:
    """Names of tensors that no key speaks for."""
    unmatched: list[str] | None = None
    for count, named in enumerate(named for named in walk.tensors() if named.device is None):
        name = walk.name(named)
        if _is_exempt(name, exempt):
            continue
        if unmatched is None:
            unmatched = list(islice(keys.unmatched(), MOST_CANDIDATES))
        nearest = nearest_of(name, unmatched) if count < _MOST_SUGGESTIONS else ()
        hint = f"; does the key {nearest[0]!r} mean it?" if nearest else ""
        yield Finding("uncovered", name, f"{name} is on no device{hint}", suggestions=nearest)


def _is_exempt(name: str, exempt: frozenset[str]) -> bool:
    """Whether a name, or what of it follows some dot, is exempt."""
    parts = name.split(".") if exempt else []
    return any(".".join(parts[-depth:]) in exempt for depth in {entry.count(".") + 1 for entry in exempt})


def tied_apart(walk: Walk) -> Iterator[Finding]:
    """Tensors whose names are on several devices."""
    for group in walk.by_identity():
        placed = [named for named in group if named.device is not None]
        if len({named.device for named in placed}) > 1:
            names = [walk.name(named) for named in placed]
            where = listed([f"{name} on {named.device}" for name, named in zip(names, placed, strict=True)])
            message = f"one tensor is on several devices: {where}"
            yield Finding("tied-apart", names[0], message, placed[0].device, names=tuple(names[1:]))


def split_blocks(walk: Walk, exempt: frozenset[str]) -> Iterator[Finding]:
    """No-split modules with tensors on several devices."""
    modules = walk.modules
    devices: list[set[Device] | None] = [None for _ in modules]  # at most two: more say nothing new
    loose = _loose(walk, exempt)
    for named in walk.tensors():
        if named.device is not None:
            devices[named.module] = _two(devices[named.module], {named.device})
    for index in range(len(modules) - 1, 0, -1):
        parent, found = modules[index].parent, devices[index]
        if found is not None:
            devices[parent] = _two(devices[parent], found)
    for index, module in enumerate(modules):
        found = devices[index]
        if module.is_block and found is not None and len(found) > 1 and index not in loose:
            name = walk.module_name(index)
            where = " and ".join(sorted(map(str, found)))
            yield Finding("split-block", name, f"{name} must not be split, but is on {where}")


def split_modules(walk: Walk, keys: Keys, exempt: frozenset[str]) -> Iterator[Finding]:
    """Modules whose own tensors would run on several devices: nothing can compute with them."""
    named_devices = {key.device for key in keys.listed if key.device is not None}
    numbers = sorted(device for device in named_devices if isinstance(device, int))
    main: Device = numbers[0] if numbers else "mps" if "mps" in named_devices else "cpu"
    # What is offloaded runs on the first accelerator; without one, what lies on the cpu runs there.
    elsewhere = {"disk"} if main in ("cpu", "mps") else {"cpu", "disk"}
    found: dict[int, dict[str, Device]] = {}
    for named in walk.tensors():
        if not walk.modules[named.module].is_loose or named.device is None or not is_device(named.device):
            continue
        name = walk.name(named)
        if not _is_exempt(name, exempt):
            found.setdefault(named.module, {})[name] = main if named.device in elsewhere else named.device
    for module, runs in found.items():
        if len(set(runs.values())) > 1:
            name = walk.module_name(module)
            where = listed([f"{tensor} on {device}" for tensor, device in runs.items()])
            message = f"{name or 'the model'} can run on one device only, but is split: {where}"
            yield Finding("split-module", name, message, names=tuple(runs))


def _loose(walk: Walk, exempt: frozenset[str]) -> set[int]:
    """Modules that hold an exempt tensor, and all inside such a block: it may be taken apart, tensor by tensor."""
    if not exempt:
        return set()
    loose = {named.module for named in walk.tensors() if _is_exempt(walk.name(named), exempt)}
    for index in range(len(walk.modules) - 1, 0, -1):
        if index in loose:
            loose.add(walk.modules[index].parent)
    opened: set[int] = set()
    for index, module in enumerate(walk.modules):
        if module.parent in opened or (module.is_block and index in loose):
            opened.add(index)
    return loose | opened


def _two(some: set[Device] | None, more: set[Device]) -> set[Device]:
    """At most two devices of both sets."""
    if some is None:
        return set(more)
    return some if len(some) > 1 else set(sorted(some | more, key=_in_order)[:2])


def _in_order(device: Device) -> tuple[bool, Any]:
    """Numbers before words; the order of a set of texts is another one in each process."""
    return isinstance(device, str), device


def over_budget(sized: list[SizedTensor], budgets: Mapping[Device, float] | None) -> Iterator[Finding]:
    """Devices that would hold more than their budget, and accelerators that have none."""
    if budgets is None:
        return
    used: dict[Device, int] = {}
    for _, devices, size in sized:
        for device in sorted(devices, key=_in_order):
            used[device] = used.get(device, 0) + size
    for device, needed in used.items():
        if device in budgets and needed > budgets[device]:
            budget = budgets[device]
            excess = format_bytes(math.ceil(needed - budget))
            message = f"device {device} would hold {format_bytes(needed)} of {format_bytes(budget)}: {excess} too much"
            yield Finding("over-budget", str(device), message, device, needed, budget)
        elif device not in budgets and is_device(device) and device not in UNLIMITED_UNLESS_LISTED:
            message = f"device {device} would hold {format_bytes(needed)}, but is not among the budgets"
            yield Finding("unlisted-device", str(device), message, device, needed, 0)


def unknown_devices(keys: Keys) -> Iterator[Finding]:
    """Keys that are sent to what names no device."""
    for key in keys.listed:
        if key.device is not None and not is_device(key.device):
            message = f"key {key.text!r} is sent to {key.device!r}, which {names_none(key.device)}"
            yield Finding("unknown-device", str(key.text), message, key.device)


def unknown_keys(keys: Keys, model: Any) -> Iterator[Finding]:
    """Keys that are no name in the model."""
    for count, key in enumerate(keys.unmatched()):
        nearest = nearest_in_model(key, model) if count < _MOST_SUGGESTIONS else ()
        hint = f"; the nearest name is {nearest[0]!r}" if nearest else ""
        message = f"key {key!r} matches nothing in the model{hint}"
        yield Finding("unknown-key", key, message, suggestions=nearest)


def nothing_to_execute_on(
    walk: Walk, sized: list[SizedTensor], budgets: Mapping[Device, float] | None
) -> Iterator[Finding]:
    """The largest offloaded block, if no device that runs what is offloaded has room for it beside what lies there."""
    if budgets is None:
        return
    fast = {device: size for device, size in budgets.items() if device not in ("cpu", "disk") and size > 0}
    left = fast or {"cpu": budgets.get("cpu", math.inf)}
    streamed: dict[int, int] = {}  # bytes by block
    tops = _top_blocks(walk)
    for names, devices, size in sized:
        for device in devices & left.keys():
            left[device] -= size
        if devices and devices <= UNLIMITED_UNLESS_LISTED - left.keys():
            block = tops[names[0].module]
            streamed[block] = streamed.get(block, 0) + size
    largest = max(streamed, key=lambda block: streamed[block], default=None)
    if largest is None or streamed[largest] <= max(left.values()):
        return
    device = max(left, key=lambda each: left[each])
    needed, available, name = streamed[largest], max(0, math.floor(left[device])), walk.module_name(largest)
    message = (
        f"{name or 'the model'} is offloaded and has nothing to execute on: it needs {format_bytes(needed)}, and "
        f"{device}, which has most left, has {format_bytes(available)}"
    )
    yield Finding("nothing-to-execute-on", name, message, device, needed, available)


def _top_blocks(walk: Walk) -> list[int]:
    """For each module the topmost no-split module around it, or itself."""
    tops: list[int] = []
    for index, module in enumerate(walk.modules):
        above = tops[module.parent] if module.parent >= 0 else -1
        is_inside = above >= 0 and walk.modules[above].is_block
        tops.append(above if is_inside else index)
    return tops


def shared_storage(walk: Walk) -> Iterator[Finding]:
    """Tensors that are different objects in one storage."""
    owners: dict[tuple[str, int], list[NamedTensor]] = {}
    for group in walk.by_identity():
        address = address_of(group[0].tensor)
        if address is not None:
            owners.setdefault(address, []).append(group[0])
    for sharers in owners.values():
        if len(sharers) > 1:
            names = [walk.name(named) for named in sharers]
            message = f"different tensors share one storage, and each is counted: {listed(names)}"
            yield Finding("shared-storage", names[0], message, names=tuple(names[1:]))
