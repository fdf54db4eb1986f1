"""Maps that put all of a model on the CPU and run it on an accelerator: transformers dispatches only what it sees on two devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from planner.plans.device_map import DeviceMap

if TYPE_CHECKING:
    from torch import nn

__all__ = ["as_dispatched", "as_meant"]

_CPU_AGAIN: Final = "cpu:0"  # another word than "cpu", and the same device


class _TwoWords(DeviceMap):
    """A map that says one device in two words.

    Args:
        meant: the map as it was.
        name: a tensor of the model, for the second word.
    """

    __slots__ = ("meant",)

    def __init__(self, meant: DeviceMap, name: str) -> None:
        super().__init__({**meant, name: _CPU_AGAIN}, meant.execution_map, meant.host_steps)
        self.meant = meant


def as_dispatched(model: nn.Module, device_map: Mapping[str, Any]) -> Mapping[str, Any]:
    """A map by which transformers dispatches a model that lies on the CPU alone, and runs elsewhere; any other as it is.

    Source: ``from_pretrained`` of transformers 5.23, modeling_utils.py: it dispatches where a map has more than one value.
    """
    if not isinstance(device_map, DeviceMap) or set(device_map.values()) != {"cpu"}:
        return device_map
    name = next((name for name, _ in model.named_parameters()), None)
    if name is None or name in device_map or set(device_map.execution_map.values()) <= {"cpu"}:
        return device_map
    return _TwoWords(device_map, name)


def as_meant(device_map: Any) -> Any:
    """The map that :func:`as_dispatched` was given."""
    return device_map.meant if isinstance(device_map, _TwoWords) else device_map
