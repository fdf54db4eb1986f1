"""Measures this machine: what its devices read and compute, and how fast bytes get from one to another."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from planner.devices.detect import free_devices
from planner.devices.machine import MOST_DEVICES, Machine
from planner.devices.machine_parts import Link
from planner.errors import InvalidInputError
from planner.measuring.computing import measured_device
from planner.measuring.copying import measured_links
from planner.measuring.disk import measured_disk
from planner.measuring.places import places
from planner.spelling import shown

__all__ = ["Probed", "probe"]

_DEVICE_S: Final = 8.0
_LINK_S: Final = 0.5
_DISK_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What measuring a machine found.

    Args:
        machine: its devices and links.
        notes: what could not be measured, and why.
    """

    machine: Machine
    notes: tuple[str, ...] = ()


def probe(
    *,
    folder: str | os.PathLike[str] | None = None,
    seconds: float = _DEVICE_S,
    tell: Callable[[str], object] | None = None,
) -> Probed:
    """This machine as data: every device that torch can use, the host, the links between them, and the disk.

    Args:
        folder: whose disk is measured, with a file of 256 MiB that is removed again; by default the folder for temporary files.
        seconds: for each device, about.
        tell: called with what is measured next.

    Returns:
        The machine, every number with the lowest and the highest that was measured, and what could not be measured.

    Raises:
        InvalidInputError: ``seconds`` that is no positive number, a folder that is none, or ``tell`` that is no function.
        InvalidDevicesError: torch is not installed or is broken. Fields: ``device``.

    Guarantee: what cannot be measured is left out and noted: pinned memory, an element type, copies between accelerators, a disk
        that is full or may not be written. Numbers whose highest exceeds the lowest by half are marked (``is_busy``): something else
        ran at the same time.

    Cost: ``seconds`` for each device and half a second for each link. Takes at most a quarter of a device's free memory.

    Example:
        >>> found = probe(seconds=0.1)  # doctest: +SKIP
        >>> found.machine.device("cpu").memory_bytes_per_s.value  # doctest: +SKIP
        25184113962
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 3600:
        raise InvalidInputError(f"seconds must be a positive number below 3600, got {shown(seconds)}")
    if tell is not None and not callable(tell):
        raise InvalidInputError(f"tell must be a function that takes a text, got {shown(tell)}")
    if folder is not None and not isinstance(folder, str | os.PathLike):
        raise InvalidInputError(f"folder must be a path, got {shown(folder)}")
    place = Path(tempfile.gettempdir() if folder is None else folder)
    if not place.is_dir():
        raise InvalidInputError(f"{place} is no folder: say one whose disk is to be measured")
    say = tell or (lambda _: None)
    found = places(free_devices())[-MOST_DEVICES:]
    devices, notes = [], []
    for each in found:
        say(f"{each.key}: {each.name or each.device.type}")
        device, more = measured_device(each, seconds)
        devices.append(device)
        notes += more
    say("links")
    links: list[Link]
    links, more = measured_links(found, _LINK_S)
    notes += more
    say(f"disk at {place}")
    from_disk, more = measured_disk(place, _DISK_S)
    notes += more
    return Probed(machine=Machine(devices=tuple(devices), links=(*links, *from_disk)), notes=tuple(notes))
