"""Which devices are alike: their rates are, and no hop tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from planner.devices.keys import DeviceKey
from planner.devices.machine_parts import MachineDevice

__all__ = ["kinds_of", "rates_of"]


def kinds_of(
    keys: Sequence[DeviceKey],
    signature: Callable[[DeviceKey], Hashable],
    hop_ps: Callable[[DeviceKey, DeviceKey], int],
) -> tuple[tuple[DeviceKey, ...], ...]:
    """Devices, those together that are alike.

    Args:
        keys: devices.
        signature: what those of one kind have in common beside their hops.
        hop_ps: what passes from one to another takes.

    Guarantee: changing two of a kind for each other changes no hop, so that a hop depends on the kinds alone. Cards in bridged pairs
        are unlike those of other pairs.

    Cost: O(devices * kinds * devices).
    """

    def swap(one: DeviceKey, other: DeviceKey) -> bool:
        others = [key for key in keys if key not in (one, other)]
        pairs = [((one, other), (other, one))]
        pairs += [((one, key), (other, key)) for key in others]
        pairs += [((key, one), (key, other)) for key in others]
        return all(hop_ps(*here) == hop_ps(*there) for here, there in pairs)

    found: list[tuple[Hashable, list[DeviceKey]]] = []
    for key in keys:
        said = signature(key)
        alike = next((kind for other, kind in found if other == said and swap(kind[0], key)), None)
        if alike is None:
            found.append((said, [key]))
        else:
            alike.append(key)
    return tuple(tuple(kind) for _, kind in found)


def rates_of(device: MachineDevice) -> Hashable:
    """What makes a device as fast as another, as plain numbers."""

    def plain(rates: Mapping[str, object]) -> Iterator[tuple[str, object]]:
        yield from sorted(rates.items())

    by_tokens = {
        dtype: tuple(sorted((t, r.value) for t, r in rates.items()))
        for dtype, rates in device.weights_bytes_per_s.items()
    }
    flops = {dtype: rate.value for dtype, rate in device.flops_per_s.items()}
    memory = device.memory_bytes_per_s
    launch = device.launch_ps
    return (
        device.kind,
        None if memory is None else memory.value,
        None if launch is None else launch.value,
        tuple(plain(flops)),
        tuple(plain(by_tokens)),
    )
