"""Buffers of offloaded blocks, which dispatch leaves where these run: counted there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from planner.devices.keys import DeviceKey
from planner.model.blocks import Blocks
from planner.names import device_of, nearest_key

__all__ = ["StayingBuffers"]


@dataclass(frozen=True)
class StayingBuffers:
    """Buffers that stay where a block runs, whether or not its weights do.

    Args:
        blocks: the model.
        are_offloaded: saved buffers rest with the weights; the others stay all the same.
    """

    blocks: Blocks
    are_offloaded: bool

    @cached_property
    def block_bytes(self) -> Mapping[str, int]:
        """By block that has such buffers, their bytes."""
        found: Counter[str] = Counter()
        for name in self.names:
            block = nearest_key(name, self._block_names)
            if block is not None:
                found[block] += ceil(self._buffer_sizes[name])
        return {name: size for name, size in found.items() if size}

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of such buffers."""
        modules = self.module_classes
        buffers = {name for name in self._buffer_sizes if name and name not in modules}
        return frozenset(
            buffers - set(self.blocks.layout.tree.uncovered([], "saved")[1])
            if self.are_offloaded
            else buffers
        )

    @cached_property
    def tensor_names(self) -> tuple[str, ...]:
        """All names of all tensors."""
        return tuple(self.blocks.layout.tree.uncovered([])[1])

    @cached_property
    def module_classes(self) -> Mapping[str, str]:
        """By name of a module, its class."""
        return self.blocks.layout.modules.classes

    @cached_property
    def stored_bytes(self) -> Mapping[str, int | float]:
        """Bytes of each module and tensor, buffers and all."""
        return self.blocks.layout.modules.sizes

    @cached_property
    def _buffer_sizes(self) -> Mapping[str, int | float]:
        """Bytes of buffers by module and tensor, all that is below a module with it."""
        return self.blocks.layout.stored_sizes("buffers")

    @cached_property
    def _block_names(self) -> frozenset[str]:
        return frozenset(self.blocks.names)

    def of(self, displaced: Collection[str], execution_map: Mapping[str, DeviceKey]) -> dict[str, int]:
        """Of blocks that lie elsewhere than they run, those with such buffers, and their bytes.

        Args:
            displaced: blocks that are offloaded; the cpu may run some of them where they lie.
            execution_map: of what runs elsewhere than it lies, the device.
        """
        # Most blocks have no buffers: which these are is known sooner than which of them stay.
        displaced = [name for name in displaced if self._buffer_sizes.get(name)]
        if not execution_map or not displaced:
            return {}
        return {
            name: self.block_bytes[name]
            for name in displaced
            if name in self.block_bytes and device_of(name, execution_map) is not None
        }

    def by_device(
        self, displaced: Collection[str], execution_map: Mapping[str, DeviceKey]
    ) -> Mapping[DeviceKey, int]:
        """By device that runs such blocks, the bytes of these."""
        found: Counter[DeviceKey] = Counter()
        for name, size in self.of(displaced, execution_map).items():
            device = device_of(name, execution_map)
            if device is not None:
                found[device] += size
        return found
