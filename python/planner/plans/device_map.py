"""The device map of a plan as callers get it: a dict of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Protocol, Self, TypeVar

from planner.devices.keys import DeviceKey
from planner.names import device_of, is_within


@dataclass(frozen=True, slots=True)
class HostSteps:
    """Of a part that lies on the host: in which steps it runs there.

    Args:
        tokens: the most new tokens of a step that the host runs: elements of the part's first tensor argument, divided by its last
            dimension.
        device: where the part is brought to, and runs, in longer steps.
    """

    tokens: int
    device: DeviceKey


class DeviceMap(dict[str, DeviceKey]):
    """Names to devices, as every loader takes them.

    Args:
        device_map: names to devices.
        execution_map: names to devices, for what runs elsewhere than it lies; loaders that know nothing of it run what is
            offloaded on the first accelerator of the map.
        host_steps: of parts that lie on the host and run there in short steps alone.

    Guarantee: a dict in every other way: it compares, copies, pickles and dumps as one. What dumps plain dicts alone, such as
        ``yaml.safe_dump``, takes ``dict(device_map)``.

    Example:
        >>> import json
        >>> json.dumps(DeviceMap({"layers.0": 0, "lm_head": "cpu"}, {"lm_head": 0}))
        '{"layers.0": 0, "lm_head": "cpu"}'
    """

    __slots__ = ("execution_map", "host_steps")

    execution_map: dict[str, DeviceKey]
    host_steps: dict[str, HostSteps]

    def __init__(
        self,
        device_map: Mapping[str, DeviceKey] = MappingProxyType({}),
        execution_map: Mapping[str, DeviceKey] = MappingProxyType({}),
        host_steps: Mapping[str, HostSteps] = MappingProxyType({}),
    ) -> None:
        super().__init__(device_map)
        self.execution_map = dict(execution_map)
        self.host_steps = dict(host_steps)

    def copy(self) -> DeviceMap:
        """Another one that says the same."""
        return DeviceMap(self, self.execution_map, self.host_steps)

    def below(self, name: str) -> DeviceMap:
        """The map of one module, with names from there: for a model that is loaded by itself, as a pipeline's components are.

        Raises:
            KeyError: the map says nothing of that module.

        Example:
            >>> plan = DeviceMap({"text_encoder": 0, "unet.down_blocks": 0, "unet.up_blocks": 1})
            >>> plan.below("unet"), plan.below("text_encoder")
            ({'down_blocks': 0, 'up_blocks': 1}, {'': 0})
        """
        found = _below(self, name)
        if not found:
            raise KeyError(name)
        inside = {key: steps for key, steps in self.host_steps.items() if is_within(key, name)}
        host_steps = {key[len(name) + 1 :] if name else key: steps for key, steps in inside.items()}
        return DeviceMap(found, _below(self.execution_map, name), host_steps)

    def elsewhere(self, tokens: int) -> dict[str, DeviceKey]:
        """What runs elsewhere than it lies in a step of so many new tokens: what always does, and parts whose step is too long for
        the host.

        Example:
            >>> device_map = DeviceMap({"0": 0, "1": "cpu"}, {}, {"1": HostSteps(16, 0)})
            >>> device_map.elsewhere(16), device_map.elsewhere(17)
            ({}, {'1': 0})
        """
        long = {name: steps.device for name, steps in self.host_steps.items() if tokens > steps.tokens}
        return {**self.execution_map, **long}

    def __reduce__(self) -> tuple[Any, ...]:
        return DeviceMap, (dict(self), self.execution_map, self.host_steps)


def _below(device_map: Mapping[str, DeviceKey], name: str) -> dict[str, DeviceKey]:
    """What a map says of a module: of all of it, and of what is inside."""
    inside = {
        key[len(name) + 1 :]: device for key, device in device_map.items() if key.startswith(f"{name}.")
    }
    around = device_of(name, device_map)
    return inside if around is None else {"": around, **inside}


class _Copied(Protocol):
    def copy(self) -> Self: ...


T = TypeVar("T", bound=_Copied)


class Own(Generic[T]):
    """A field of a frozen class that gives each caller a copy of its own, so that none can change another's.

    The instance keeps what was set; the class has no default for it.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __set__(self, instance: Any, value: T) -> None:
        vars(instance)[self._name] = value.copy()

    def __get__(self, instance: Any, owner: type) -> T:
        if instance is None:  # dataclasses asks the class for a default
            raise AttributeError(self._name)
        kept: T = vars(instance)[self._name]
        return kept.copy()
