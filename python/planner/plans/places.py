"""Devices as people call them."""

from __future__ import annotations

from collections.abc import Sequence

from planner.devices.keys import DeviceKey

LEFT_OVER: DeviceKey = "left over"
"""Stands for a device where there is none."""

_NAMES: dict[DeviceKey, str] = {LEFT_OVER: "left over", "cpu": "RAM", "disk": "disk", "mps": "the GPU"}


def place_name(device: DeviceKey) -> str:
    """Where weights lie.

    Example:
        >>> place_name(0), place_name("cpu"), place_name("disk")
        ('GPU 0', 'RAM', 'disk')
    """
    return _NAMES.get(device, f"GPU {device}")


def runner_name(device: DeviceKey) -> str:
    """What computes.

    Example:
        >>> runner_name(0), runner_name("cpu")
        ('GPU 0', 'the CPU')
    """
    return "the CPU" if device in ("cpu", "disk") else place_name(device)


def listed_places(devices: Sequence[DeviceKey], last: str = "and") -> str:
    """Places in a sentence; accelerators in a row are a range.

    Example:
        >>> listed_places([0, 1]), listed_places([0, 1, 2, 3, 5], "or"), listed_places(["cpu"])
        ('GPU 0 and GPU 1', 'GPUs 0-3 or GPU 5', 'RAM')
    """
    spans: list[list[DeviceKey]] = []
    for device in devices:
        before = spans[-1][-1] if spans else None
        if isinstance(device, int) and isinstance(before, int) and device == before + 1:
            spans[-1].append(device)
        else:
            spans.append([device])
    words = []
    for span in spans:
        is_range = len(span) > 2
        words += [f"GPUs {span[0]}-{span[-1]}"] if is_range else [place_name(device) for device in span]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
