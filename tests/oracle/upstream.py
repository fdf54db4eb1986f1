"""Upstream's own modules, executed a second time from their source with sets in insertion order, and with repairs.

In memory only: the installed packages stay as they are. A repair is a regular expression that must match exactly as
often as it says, so that a new upstream version is noticed at import.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Repair = tuple[str, str, int]  # pattern, replacement, how often it must match


def prefix_containment(inside: int, outside: int) -> list[Repair]:
    """ "Inside" is a dotted prefix, not a substring: "l1" is not inside "enc.l1"."""
    return [
        (r'name \+ "\." in (\w) \+ "\."', r'(\1 + ".").startswith(name + ".")', inside),
        (r'name \+ "\." not in (\w) \+ "\."', r'not (\1 + ".").startswith(name + ".")', outside),
    ]


def buffers_survive_a_split(modules: int, parents: int) -> list[Repair]:
    """Splitting keeps direct buffers, appended last: of the current module, of a tied one, of the fallback's parents."""
    split = r"(\w*children) = list\((\w+)\.named_parameters\(recurse=False\)\) \+ \1(?!\n +modules_to_search)"
    return [
        (split, r"\g<0> + list(\2.named_buffers(recurse=False))", modules),
        (
            r"(parent_module)\.named_children\(\)\s*\)",
            r"\g<0> + list(\1.named_buffers(recurse=False))",
            parents,
        ),
    ]


class OrderedSet(dict):
    """Just enough of `set` for upstream's code, in insertion order."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        super().__init__(dict.fromkeys(items))

    def __sub__(self, other: Any) -> OrderedSet:
        return OrderedSet(item for item in self if item not in other)


def executed_again(upstream: types.ModuleType, repairs: Iterable[Repair] = ()) -> types.ModuleType:
    """A second copy of a module, with the repairs, whose sets iterate in insertion order."""
    source = inspect.getsource(upstream)
    for pattern, replacement, expected in repairs:
        source, found = re.subn(pattern, replacement, source)
        if found != expected:
            raise RuntimeError(f"upstream has changed: {pattern!r} matched {found} times, not {expected}")
    module = types.ModuleType(upstream.__name__)
    module.__file__, module.__package__ = upstream.__file__, upstream.__package__
    exec(compile(source, str(upstream.__file__), "exec"), module.__dict__)
    module.__dict__["set"] = OrderedSet
    return module


@dataclass(frozen=True)
class Answer:
    """What upstream says. Where it binds, ours must be identical; everywhere else ours must be valid."""

    binding: bool
    device_map: dict[str, Any] | None
    why: str | None  # why it does not bind
    verdict: str  # "binding", "raised", "invalid" or "accident"


def answer(plan: Any, repaired_plan: Any, fault_of: Any) -> Answer:
    """Upstream's map binds where it is valid, and the repaired upstream gives the same map in the same order."""
    try:
        device_map = dict(plan())
    except Exception as error:
        return Answer(False, None, f"upstream raised {type(error).__name__}: {error}", "raised")
    fault = fault_of(device_map)
    if fault:
        return Answer(False, device_map, f"upstream's map is invalid: {fault}", "invalid")
    try:
        same = list(repaired_plan().items()) == list(device_map.items())
    except Exception as error:
        return Answer(False, device_map, f"the repaired upstream raised {type(error).__name__}", "accident")
    if not same:
        return Answer(False, device_map, "valid only by an accident of a defect", "accident")
    return Answer(True, device_map, None, "binding")


def fault(
    device_map: dict[str, Any],
    max_memory: dict[Any, Any],
    tensors: Iterable[tuple[str, Any, int]],
    same_as: dict[str, str] | None = None,
    exempt: Iterable[str] = (),
) -> str | None:
    """Why a device map is invalid, or None. Tensors are (name, identity, bytes); unlisted cpu and disk are unlimited."""
    used: dict[Any, dict[Any, int]] = {}
    placed: dict[Any, Any] = {}
    identities = {name: identity for name, identity, _ in tensors}
    for name, identity, size in tensors:
        device = device_of(device_map, name)
        if device is None:
            if name in exempt:
                continue
            return f"{name} is not covered"
        identity = identities.get((same_as or {}).get(name, name), identity)
        first = placed.setdefault(identity, device)
        if first != device:
            return f"{name} is tied across {first} and {device}"
        used.setdefault(device, {}).setdefault(identity, size)
    for device, sizes in used.items():
        if device in max_memory and sum(sizes.values()) > max_memory[device]:
            return f"{device} holds {sum(sizes.values())} of {max_memory[device]}"
    return None


def device_of(device_map: dict[str, Any], name: str) -> Any:
    """The device of a name by the nearest key above it, or None."""
    while name and name not in device_map:
        name = name.rpartition(".")[0]
    return device_map.get(name)
