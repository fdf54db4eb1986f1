"""The devices of this machine as torch has them: one path for every back end, the host included."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from planner.devices.keys import DeviceKey

if TYPE_CHECKING:
    from planner.devices.detect import FreeMemory

_CACHE_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
# Larger than the last cache of any accelerator that is sold; torch does not tell them.
_ACCELERATOR_CACHE_BYTES: Final = 256 << 20
_UNKNOWN_CACHE_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """A device that is measured.

    Args:
        key: its key in plans.
        device: as torch has it.
        name: what it is called.
        memory_bytes: what it has.
        free_bytes: what measuring may take of.
        cache_bytes: its last cache, or more.
        wait: returns when its work is done.
    """

    key: DeviceKey
    device: torch.device
    name: str
    memory_bytes: int
    free_bytes: int
    cache_bytes: int
    wait: Callable[[], object]

    @property
    def is_host(self) -> bool:
        return self.device.type == "cpu"


def places(free: tuple[FreeMemory, ...]) -> tuple[Place, ...]:
    """Every accelerator, and the host last. Args: ``free``: what :func:`planner.devices.detect.free_devices` found."""
    return tuple(_places(free))


def _places(free: tuple[FreeMemory, ...]) -> Iterator[Place]:
    for each in free:
        if each.device == "cpu":
            continue
        device = torch.device("mps", 0) if each.device == "mps" else _numbered(int(each.device))
        yield Place(
            key=each.device,
            device=device,
            name=each.name or "",
            memory_bytes=_memory_bytes(device, each.free_bytes),
            free_bytes=each.free_bytes,
            cache_bytes=_ACCELERATOR_CACHE_BYTES,
            wait=lambda device=device: torch.accelerator.synchronize(device),  # type: ignore[misc]
        )
    host = next(each for each in free if each.device == "cpu")
    yield Place(
        key="cpu",
        device=torch.device("cpu"),
        name=_host_name(),
        memory_bytes=_host_bytes(),
        free_bytes=host.free_bytes,
        cache_bytes=last_cache_bytes(),
        wait=lambda: None,
    )


def _numbered(index: int) -> torch.device:
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return torch.device(accelerator.type, index)


def _memory_bytes(device: torch.device, free_bytes: int) -> int:
    memory_of = getattr(torch.get_device_module(device), "mem_get_info", None)
    return int(memory_of(device.index)[1]) if memory_of else free_bytes


def _host_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _host_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []  # other systems have no such file
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def last_cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """The host's largest cache, as the kernel says it; 64 MiB where it does not."""
    sizes = []
    for file in folder.glob("index*/size"):
        text = file.read_text().strip()
        unit = _CACHE_UNITS.get(text[-1:])
        if unit and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * unit)
    return max(sizes, default=_UNKNOWN_CACHE_BYTES)
