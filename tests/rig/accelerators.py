"""What tests ask of the virtual accelerators: bytes in use, limits, traffic, and whether streams were kept in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from rig.backend import NAME, register

__all__ = ["Accelerators", "OutOfOrderError", "Traffic"]


class OutOfOrderError(AssertionError):
    """Work on streams was not ordered: on a real accelerator, the values would depend on luck."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes copied since the last reset; what kernels do inside is not counted."""

    to_device_bytes: int
    to_host_bytes: int
    between_devices_bytes: int


class Accelerators:
    """Both devices of this process."""

    def __init__(self) -> None:
        self._extension = register()
        self.devices = tuple(torch.device(NAME, index) for index in range(self._extension.device_count()))

    def used_bytes(self, index: int) -> int:
        """Bytes of living tensors on a device."""
        return torch.accelerator.memory_allocated(index)

    def peak_bytes(self, index: int) -> int:
        """The most that `used_bytes` has been since the last reset."""
        return torch.accelerator.max_memory_allocated(index)

    def pinned_bytes(self) -> int:
        """Bytes of living tensors in pinned memory."""
        return int(self._extension.pinned_bytes())

    def traffic(self) -> Traffic:
        """Bytes copied since the last reset."""
        return Traffic(*self._extension.traffic_bytes())

    def synchronize(self) -> None:
        """The host waits for all work on both devices."""
        for device in self.devices:
            torch.accelerator.synchronize(device.index)

    def reset(self) -> None:
        """Peaks start from what is in use, traffic from zero; limits, allocations left and current device are as at first."""
        for device in self.devices:
            torch.accelerator.reset_peak_memory_stats(device.index)
            torch.accelerator.reset_accumulated_memory_stats(device.index)
            self._extension.set_limit_bytes(device.index, -1)
            self._extension.set_allocations_left(device.index, -1)
        self._extension.reset_traffic()
        self._extension.take_races()
        torch.accelerator.set_device_index(0)

    @contextmanager
    def memory_limit_bytes(self, index: int, limit_bytes: int) -> Iterator[None]:
        """Within the block, a device has so many bytes, and more raise torch.OutOfMemoryError."""
        self._extension.set_limit_bytes(index, limit_bytes)
        try:
            yield
        finally:
            self._extension.set_limit_bytes(index, -1)

    @contextmanager
    def out_of_memory_after(self, index: int, allocations: int) -> Iterator[None]:
        """Within the block, a device serves so many more allocations, and then raises torch.OutOfMemoryError.

        Whatever the sizes are, a loop over `allocations` meets every place where memory can run out.
        """
        self._extension.set_allocations_left(index, allocations)
        try:
            yield
        finally:
            self._extension.set_allocations_left(index, -1)

    @contextmanager
    def watch_streams(self) -> Iterator[None]:
        """Within the block, work on streams must be ordered wherever it shares memory.

        - A use of device memory that another stream writes, or a write to what another stream uses, without an event or a
          synchronisation between them, raises where it happens.
        - Memory that is freed while another stream may still use it, and pinned memory that is changed while a copy may
          still be reading it, raise at the end of the block.
        - A non-blocking copy to pinned memory arrives when the host has waited for it, and not before.

        Raises:
            OutOfOrderError: with everything that was not in order.
        """
        self.synchronize()
        self._extension.take_races()
        self._extension.watch_streams(True)
        try:
            yield
            self.synchronize()
        finally:
            self._extension.watch_streams(False)
            races = self._extension.take_races()
        if races:
            raise OutOfOrderError("\n".join(races))
