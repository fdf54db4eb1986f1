"""``hf_device_map``: what other libraries read of a model, and of models inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from planner.dispatching.tensors.journal import Journal
from planner.dispatching.tensors.slots import modules_of
from planner.plans.device_map import DeviceMap

__all__ = ["ShownMap", "shown_maps"]

_ATTRIBUTE = "hf_device_map"


@dataclass(frozen=True, slots=True, eq=False)
class ShownMap:
    """A device map that a model shows.

    Args:
        model: the model, or one inside it.
        device_map: names there to devices.
        before: what it showed before, if anything.
    """

    model: nn.Module
    device_map: dict[str, Any]
    before: tuple[Any, ...] = ()

    @classmethod
    def show(cls, journal: Journal, model: nn.Module, device_map: dict[str, Any]) -> ShownMap:
        """Lets a model show it from now on."""
        table = model.__dict__
        before = (table[_ATTRIBUTE],) if _ATTRIBUTE in table else ()
        journal.set(table, _ATTRIBUTE, device_map)
        return cls(model, device_map, before)

    def take_off(self, journal: Journal) -> None:
        """What was shown before; a map that others have put there since stays."""
        journal.put_back(self.model.__dict__, _ATTRIBUTE, self.device_map, *self.before)


def shown_maps(model: nn.Module, device_map: Mapping[str, Any]) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """The map of a model, and its part for each model inside that shows one now."""
    if not device_map:
        return
    yield model, dict(device_map)
    for name, module in modules_of(model):
        if name and _ATTRIBUTE in module.__dict__:
            try:
                yield module, dict(DeviceMap(device_map).below(name))
            except KeyError:  # nothing of it has a place
                continue
