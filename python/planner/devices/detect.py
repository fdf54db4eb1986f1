"""What this machine has free: accelerators, host memory, disk; each with where the number comes from."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.devices.keys import Budgets, DeviceKey, accelerator_backend
from planner.errors import InvalidDevicesError

logger = logging.getLogger(__name__)

_CGROUP = Path("/sys/fs/cgroup")
_HOST_POOL = "host memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeMemory:
    """Free bytes of one device, and where the number comes from.

    Args:
        device: its key.
        free_bytes: what could be allocated now.
        origin: where the number comes from, in words.
        pool: devices of one pool share their memory; None for memory of its own.
        name: what the card is called, if torch knows.
    """

    device: DeviceKey
    free_bytes: int
    origin: str
    pool: str | None = None
    name: str | None = None


def free_devices(offload_folder: str | os.PathLike[str] | None = None) -> tuple[FreeMemory, ...]:
    """Every accelerator that torch can use, host memory, and the disk of an offload folder if one is given.

    Guarantee: memory that an allocator has reserved but does not use counts as free; memory that accelerators share with the
        host is one pool, counted once.

    Raises:
        InvalidDevicesError: torch is not installed or is broken, and accelerators cannot be found without it. Fields: ``device``.

    Cost: importing torch, and one query for each device.
    """
    accelerators = list(_free_accelerators())
    host = free_host_memory()
    shares = any(free.pool for free in accelerators)
    found = [
        *accelerators,
        FreeMemory(
            device="cpu", free_bytes=host.free_bytes, origin=host.origin, pool=_HOST_POOL if shares else None
        ),
    ]
    if offload_folder is not None:
        found.append(free_disk(offload_folder))
    return tuple(found)


def _free_accelerators() -> Iterator[FreeMemory]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise InvalidDevicesError(
            "accelerators are found by torch, which is not installed: name what may be used, as in "
            "max_memory={0: '80GiB', 'cpu': '200GiB'} or -d 0=80GiB -d cpu=200GiB",
            device=None,
        ) from error
    except (ImportError, OSError) as error:  # a library of its own is missing, for one
        raise InvalidDevicesError(
            f"accelerators are found by torch, which is there and cannot be imported ({error}): repair it, or name what may be "
            "used, as in max_memory={0: '80GiB', 'cpu': '200GiB'} or -d 0=80GiB -d cpu=200GiB",
            device=None,
        ) from error
    if torch.backends.mps.is_available():
        host = free_host_memory()
        yield FreeMemory(
            device="mps",
            free_bytes=host.free_bytes,
            origin=f"shared with the host: {host.origin}",
            pool=_HOST_POOL,
        )
        return
    for each in _numbered_accelerators():
        free_bytes, idle_bytes = each.driver_bytes(), each.idle_bytes()
        yield FreeMemory(
            device=each.index,
            free_bytes=free_bytes + idle_bytes,
            origin=f"torch.{each.name}.mem_get_info({each.index})"
            + (" + reserved but unused" if idle_bytes else ""),
            pool=_HOST_POOL if each.shares_host_memory() else None,
            name=each.card_name(),
        )


@dataclass(frozen=True, slots=True)
class _Accelerator:
    """One accelerator that a number names; torch is asked for each figure when it is needed."""

    backend: Any  # torch's module for its kind
    index: int

    @property
    def name(self) -> str:
        """What torch calls its kind."""
        return str(self.backend.__name__.rpartition(".")[2])

    def driver_bytes(self) -> int:
        """What the driver could give out now."""
        return int(self.backend.mem_get_info(self.index)[0])

    def idle_bytes(self) -> int:
        """What torch's caching allocator holds and does not use."""
        reserved = getattr(self.backend, "memory_reserved", None)
        allocated = getattr(self.backend, "memory_allocated", None)
        return int(reserved(self.index) - allocated(self.index)) if reserved and allocated else 0

    def shares_host_memory(self) -> bool:
        """Whether its memory is the host's."""
        return bool(getattr(self._properties(), "is_integrated", False))

    def card_name(self) -> str | None:
        """What its driver calls it, such as "NVIDIA GeForce RTX 4090"."""
        name = getattr(self._properties(), "name", None)
        return name if isinstance(name, str) and name else None

    def _properties(self) -> Any:
        properties_of = getattr(self.backend, "get_device_properties", None)
        return properties_of(self.index) if properties_of else None


def _numbered_accelerators() -> Iterator[_Accelerator]:
    backend = accelerator_backend()
    for index in range(int(backend.device_count()) if backend else 0):
        yield _Accelerator(backend, index)


def budgets_as_accelerate() -> Budgets:
    """Free bytes by device as accelerate sees them: of the driver alone, and of the system whatever the process may use.

    A device that cannot be asked is left out with a log line; host memory is left out where mps or cuda share it, as it would
    count twice.

    Source: ``get_max_memory(None)``, accelerate 1.15.
    """
    import torch

    budgets: Budgets = {}
    shares_host_memory = False
    for each in _numbered_accelerators():
        try:
            budgets[each.index] = each.driver_bytes()
        except (RuntimeError, AttributeError) as error:
            logger.info(
                "Device %s seems unavailable (%s), proceeding to check subsequent devices.", each.index, error
            )
            continue
        shares_host_memory |= each.backend is torch.cuda and each.shares_host_memory()
    if torch.backends.mps.is_available():
        budgets["mps"] = _system_bytes()
    elif not shares_host_memory:
        budgets["cpu"] = _system_bytes()
    return budgets


def _system_bytes() -> int:
    """What the system has left, whatever limits the process has."""
    import psutil

    return int(psutil.virtual_memory().available)


def free_host_memory() -> FreeMemory:
    """The least of what the system, the cgroup (v1 or v2, at any level) and the process's limits leave.

    Example:
        >>> free_host_memory().free_bytes > 0
        True
    """
    import psutil

    found = [(_system_bytes(), "psutil.virtual_memory().available")]
    found.extend(_cgroup_limits())
    found.extend(_process_limits(int(psutil.Process().memory_info().vms)))
    free_bytes, origin = min(found)
    return FreeMemory(device="cpu", free_bytes=free_bytes, origin=origin)


def _process_limits(used_bytes: int) -> Iterator[tuple[int, str]]:
    try:
        import resource
    except ModuleNotFoundError:  # Windows, whose processes have no such limits
        return
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        which = getattr(resource, name, None)  # not every system has each
        limit = resource.RLIM_INFINITY if which is None else resource.getrlimit(which)[0]
        if limit != resource.RLIM_INFINITY:
            yield max(0, limit - used_bytes), name


def _cgroup_limits() -> Iterator[tuple[int, str]]:
    for folder in _cgroup_folders():
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit_bytes, used_bytes = _number(folder / limit), _number(folder / used)
            if limit_bytes is not None and used_bytes is not None:
                # Page cache counts as used there, but gives way when memory is needed.
                busy_bytes = max(0, used_bytes - _statistic(folder / "memory.stat", cache))
                yield max(0, limit_bytes - busy_bytes), f"{folder / limit}"


def _cgroup_folders() -> Iterator[Path]:
    """This process's cgroup and all above it: every level's limit holds."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # no cgroups on this system
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory") or "memory" in controllers.split(","):
            base = _CGROUP if not controllers else _CGROUP / "memory"
            here = Path(path.lstrip("/"))
            yield from (base / part for part in (here, *here.parents))


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None  # that version of cgroups, or that level, has no such file
    return int(text) if text.isdigit() else None


def _statistic(file: Path, name: str) -> int:
    try:
        rows = dict(line.split() for line in file.read_text().splitlines())
    except (OSError, ValueError):
        return 0  # without it, the whole cache counts as used: less free, never more
    return int(rows.get(name, 0))


def free_disk(folder: str | os.PathLike[str]) -> FreeMemory:
    """Free bytes where an offload folder is, or will be made."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return FreeMemory(
        device="disk", free_bytes=shutil.disk_usage(place).free, origin=f"free space at {place}"
    )
