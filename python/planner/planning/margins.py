"""What torch's allocator may take beyond what is asked of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from planner.devices.keys import DeviceKey, accelerator_backend, device_kind
from planner.devices.nodes import local_device, node_of

# Of replays of recorded tapes through the published rules of CUDA's caching allocator; a bound, not a measurement of a card.
_SHARE: Final = Fraction(1, 4)
_WORKSPACES_BYTES: Final = 96 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorMargin:
    """A margin as a rule.

    Args:
        share: of cache and activations.
        beside_bytes: once on a device that runs anything.
    """

    share: Fraction = Fraction(0)
    beside_bytes: int = 0


def margin_of(device: DeviceKey, said: int | str | None) -> AllocatorMargin:
    """The margin of one device, for any workload.

    Args:
        device: which; only CUDA's caching allocator takes more than is asked for.
        said: bytes, or a share as in "25%"; None for the default.
    """
    if device_kind(device) != "accelerator":
        return AllocatorMargin()
    if isinstance(said, int):
        return AllocatorMargin(beside_bytes=said)
    if said is not None:
        return AllocatorMargin(share=Fraction(said.rstrip("%")) / 100)
    return (
        AllocatorMargin(share=_SHARE, beside_bytes=_WORKSPACES_BYTES)
        if _is_cuda(device)
        else AllocatorMargin()
    )


def margin_bytes(device: DeviceKey, running_bytes: int, said: int | str | None) -> int:
    """The margin of one device with what runs there.

    Args:
        device, said: as of :func:`margin_of`.
        running_bytes: cache and activations there.

    Example:
        >>> margin_bytes("cpu", 1000, None), margin_bytes(0, 1000, "10%"), margin_bytes(0, 1000, 64), margin_bytes(0, 0, 64)
        (0, 100, 64, 0)
    """
    margin = margin_of(device, said)
    return int(running_bytes * margin.share) + margin.beside_bytes if running_bytes else 0


def _is_cuda(device: DeviceKey) -> bool:
    """Whether a number stands for a CUDA device: unless torch is loaded and has another kind of accelerator, here, where the device is."""
    if not isinstance(local_device(device), int):
        return False
    if node_of(device) or "torch" not in sys.modules:
        return True
    backend = accelerator_backend()
    return backend is None or backend.__name__.endswith("cuda")
