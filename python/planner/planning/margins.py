"""What torch's allocator may take beyond what is asked of it."""

from __future__ import annotations

import sys
from typing import Final

from planner.devices.keys import DeviceKey, accelerator_backend, device_kind

# Of replays of recorded tapes through the published rules of CUDA's caching allocator; a bound, not a measurement of a card.
_SHARE: Final = 0.25
_WORKSPACES_BYTES: Final = 96 << 20


def margin_bytes(device: DeviceKey, running_bytes: int, said: int | str | None) -> int:
    """The margin of one device.

    Args:
        device: which; only CUDA's caching allocator takes more than is asked for.
        running_bytes: cache and activations there.
        said: bytes, or a share of these as in "25%"; None for the default.

    Example:
        >>> margin_bytes("cpu", 1000, None), margin_bytes(0, 1000, "10%"), margin_bytes(0, 1000, 64), margin_bytes(0, 0, 64)
        (0, 100, 64, 0)
    """
    if not running_bytes or device_kind(device) != "accelerator":
        return 0
    if isinstance(said, int):
        return said
    if said is not None:
        return int(running_bytes * float(said.rstrip("%")) / 100)
    return int(running_bytes * _SHARE) + _WORKSPACES_BYTES if _is_cuda(device) else 0


def _is_cuda(device: DeviceKey) -> bool:
    """Whether a number stands for a CUDA device: unless torch is loaded and has another kind of accelerator."""
    if not isinstance(device, int):
        return False
    if "torch" not in sys.modules:
        return True
    backend = accelerator_backend()
    return backend is None or backend.__name__.endswith("cuda")
