"""Buffers of offloaded blocks, which dispatch leaves where these run: counted there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

from planner.devices.keys import DeviceKey
from planner.memory.demands import Demands
from planner.model.blocks import Blocks
from planner.names import device_of, nearest_key
from planner.planning.running import RunningRooms
from planner.strategies.auto import AutoAnswer, AutoSearch, certified

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
        layout = self.blocks.layout
        sizes = layout.stored_sizes("buffers")
        if self.are_offloaded:
            saved = set(layout.tree.uncovered([], "saved")[1])
            sizes = {name: size for name, size in sizes.items() if name not in saved}
        buffers = set(layout.tree.uncovered([])[1]) & sizes.keys()
        names = {name for block in self.blocks.columns.block_names() for name in block}
        found: Counter[str] = Counter()
        for name in buffers:
            block = nearest_key(name, names)
            if block is not None:
                found[block] += ceil(sizes[name])
        return {name: size for name, size in found.items() if size}

    def of(self, answer: AutoAnswer) -> dict[str, int]:
        """Of the blocks that an answer runs elsewhere than they lie, those with such buffers, and their bytes."""
        return {
            name: self.block_bytes[name]
            for name in answer.displaced()
            if name in self.block_bytes and device_of(name, answer.execution_map) is not None
        }

    def by_device(self, answer: AutoAnswer) -> Mapping[DeviceKey, int]:
        """By device that runs such blocks, the bytes of these."""
        found: Counter[DeviceKey] = Counter()
        for name, size in self.of(answer).items():
            device = device_of(name, answer.execution_map)
            if device is not None:
                found[device] += size
        return found

    def settled(
        self, search: AutoSearch, answer: AutoAnswer, rooms: RunningRooms | None
    ) -> tuple[AutoSearch, AutoAnswer]:
        """The search and its answer with these buffers counted where they are; unchanged where there are none.

        Blocks that were offloaded once have room for their buffers where they run in every further answer, so that it ends.

        Raises:
            InfeasibleError: no plan with room for them was found.
        """
        if not answer.execution_map or not self.block_bytes:
            return search, answer
        bound_bytes, steps = answer.certificate.lower_bound_bytes, answer.certificate.steps
        counted: dict[str, int] = {}
        while True:
            staying = self.of(answer)
            if staying.keys() <= counted.keys():
                break
            counted.update(staying)
            devices = [budget.device for budget in search.device_budgets]
            known = rooms or RunningRooms(by_phase={"prefill": Demands(blocks={})}, margin=0)
            search = replace(search, demands=known.searched(self.blocks, devices, counted))
            answer = search.solve()
            steps += answer.certificate.steps
        if not counted:
            return search, answer
        return search, certified(answer, bound_bytes, steps)
