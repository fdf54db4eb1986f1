"""Device maps that transformers reads as we do: it takes a key for the beginning of a text, where we take it for a module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planner.names import device_of, nearest_key
from planner.plans.device_map import DeviceMap

if TYPE_CHECKING:
    from torch import nn

__all__ = ["as_matched"]


def as_matched(model: nn.Module, device_map: Mapping[str, Any]) -> Mapping[str, Any]:
    """A map with as many keys more as it takes for every tensor to be loaded where its nearest key says.

    Guarantee: the map itself, where it takes none.

    Cost: O(tensors · keys), as each of the several times that transformers matches them.

    Source: ``expand_device_map`` of transformers 5.23, integrations/accelerate.py: by ``{"layers.1": "disk", "": 0}`` it sends
        layers 10 and 11 to disk as well.

    Example:
        >>> from torch import nn
        >>> layers = nn.ModuleDict({"h": nn.ModuleList(nn.Linear(1, 1) for _ in range(12))})
        >>> as_matched(layers, {"h.1": "disk", "": 0})
        {'h.1': 'disk', '': 0, 'h.10': 0, 'h.11': 0}
    """
    parameters = model.named_parameters(remove_duplicate=False)
    buffers = model.named_buffers(remove_duplicate=False)
    names = [name for named in (parameters, buffers) for name, _ in named]
    found = dict(device_map)
    while more := _lacking(found, device_map, names):
        found |= more
    if len(found) == len(device_map):
        return device_map
    return DeviceMap(found, device_map.execution_map) if isinstance(device_map, DeviceMap) else found


def _lacking(found: Mapping[str, Any], device_map: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Keys for names that are matched by another module's key, each of a module beside that one."""
    matched = _Matched(found)
    more: dict[str, Any] = {}
    for name in names:
        key, device = matched.key(name), device_of(name, device_map)
        if device is None or found.get(key, "cpu") == device:
            continue
        beside = ".".join(name.split(".")[: key.count(".") + 1])
        is_free = beside not in found and nearest_key(beside, device_map) is not None
        more[beside if is_free else name] = device_of(beside, device_map) if is_free else device
    return {key: device for key, device in more.items() if key not in found}


class _Matched:
    """Which key of a map transformers takes for a name."""

    def __init__(self, device_map: Mapping[str, Any]) -> None:
        keys = sorted(device_map, key=lambda key: (key.count("."), len(key)), reverse=True)
        self._pattern = re.compile("|".join(f"({key})" for key in keys))

    def key(self, name: str) -> str:
        match = self._pattern.match(name)
        return match.group() if match else ""
