"""Copying the next offloaded block to its accelerator while this one computes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Protocol, cast

import torch

from planner.dispatching.offload.materialize import version_of
from planner.dispatching.offload.reads_ahead import OffloadedBlock
from planner.dispatching.offload.refcount import OffloadedModule, is_capturing
from planner.dispatching.offload.store import OffloadStore
from planner.dispatching.tensors.copies import copied
from planner.dispatching.tensors.fakes import is_fake

__all__ = ["FollowedBlock", "Prefetcher", "Staged"]

logger = logging.getLogger(__name__)


class FollowedBlock(OffloadedBlock, Protocol):
    """What copying ahead knows of a block.

    Args:
        follower: the offloaded block that ran after it, as learnt.
    """

    follower: Any


class Staged:
    """Tensors of one offloaded module on their way to a device.

    Args:
        origins: the resting tensors.
        tensors: their copies.
        device: where they go.
        event: when they have arrived; None for fake ones, which take no time.
    """

    __slots__ = ("device", "event", "origins", "tensors", "versions")

    def __init__(
        self,
        origins: Sequence[torch.Tensor],
        tensors: Sequence[torch.Tensor],
        device: torch.device,
        event: Any,
    ) -> None:
        self.origins = origins
        self.versions = [version_of(tensor) for tensor in origins]
        self.tensors = tensors
        self.device = device
        self.event = event

    def take(self, device: torch.device, store: OffloadStore) -> Sequence[torch.Tensor] | None:
        """The copies, once this thread's stream may use them; None if they are not what is wanted now."""
        if device != self.device or not self._is_current(store):
            return None
        if self.event is None:
            return self.tensors
        stream = torch.get_device_module(device).current_stream(device)
        stream.wait_event(self.event)
        for tensor in self.tensors:
            # Freed memory goes back to the stream that it was taken from; it must not be handed out before we are done.
            tensor.record_stream(stream)
        return self.tensors

    def _is_current(self, store: OffloadStore) -> bool:
        """Whether the resting tensors are those that were copied, and as they were then."""
        if [version_of(tensor) for tensor in self.origins] != self.versions:
            return False
        # Files make a new tensor each time, and reading them again is what copying ahead saves.
        return not isinstance(store.source, MutableMapping) or all(
            store.value(index) is origin for index, origin in enumerate(self.origins)
        )


class _Lane(threading.local):
    """What this thread did last in the forward that it is in."""

    def __init__(self) -> None:
        self.last: FollowedBlock | None = None
        # New tokens of this forward, as the last of those blocks has said that go by them; None before the first.
        self.tokens: int | None = None
        self.staged: list[OffloadedModule] = []
        # Forwards of the whole model that have begun and not ended.
        self.forwards: set[object] = set()

    def __reduce__(self) -> Any:
        return (_Lane, ())


class Prefetcher:
    """Learns in the first forward which block follows which, and from then on copies one block ahead.

    Args:
        room_bytes: by device, what blocks may take there together: that in use and the next one.

    Guarantee: outputs are the same. A block that does not fit into the room is not copied ahead; what was copied ahead on a
        wrong guess is gone before the right block is brought in, and after the forward. Copies start from pinned memory, which takes the place of the resting
        tensors.
    """

    def __init__(self, room_bytes: Mapping[torch.device, int]) -> None:
        self.room_bytes = dict(room_bytes)
        self._streams: dict[torch.device, Any] = {}
        self._lane = _Lane()

    def __getstate__(self) -> dict[str, Any]:
        return {"room_bytes": self.room_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["room_bytes"])  # type: ignore[misc]

    @staticmethod
    def can_serve(device: torch.device) -> bool:
        """Whether a device has streams."""
        return device.type not in ("cpu", "meta") and hasattr(torch.get_device_module(device), "Stream")

    def serves(self, block: OffloadedBlock) -> bool:
        """Whether a block runs where there is room."""
        return block.device in self.room_bytes

    def needing(self, block: OffloadedBlock) -> None:
        """Drops what was copied ahead in the place of this block: the room may hold no more than one."""
        self._drop_unused(self._lane, cast(FollowedBlock, block))

    def computing(self, block: OffloadedBlock) -> None:
        """To be called when a block has its weights and is about to compute: sends for the next one."""
        hook = cast(FollowedBlock, block)
        self._send_for_next(hook, hook.resting_bytes())

    def sized(self, block: OffloadedBlock, tokens: int) -> None:
        """To be called before a block that the cpu runs in short steps: of how many new tokens this one is."""
        self._lane.tokens = tokens

    def passing(self, block: OffloadedBlock) -> None:
        """To be called when the cpu is about to run a block where its weights rest: sends for the next one that is brought in."""
        self._send_for_next(cast(FollowedBlock, block), 0)

    def _send_for_next(self, hook: FollowedBlock, used_bytes: int) -> None:
        lane = self._lane
        if not lane.forwards:
            return  # one layer called alone: nothing would clean up after the next one
        if lane.last is not None:
            lane.last.follower = hook
        lane.last = hook
        following = _next_brought_in(hook, lane.tokens)
        self._drop_unused(lane, following)
        if following is None or following.device is None or following is hook:
            return
        if is_capturing(following.device):
            return  # the block itself will say that this cannot be
        if used_bytes + following.resting_bytes() <= self.room_bytes.get(following.device, 0):
            self._stage(following, following.device, lane)

    def begin(self, forward: object) -> None:
        """To be called before a forward of the whole model; :meth:`finish` ends it."""
        self._lane.forwards.add(forward)

    def finish(self, forward: object) -> None:
        """To be called after a forward, once or more: nothing that was copied ahead stays."""
        lane = self._lane
        lane.forwards.discard(forward)
        if not lane.forwards:
            lane.last, lane.tokens = None, None
            self._drop_unused(lane, None)

    def close(self) -> None:
        """Lets go of the streams."""
        self._streams.clear()

    @staticmethod
    def _drop_unused(lane: _Lane, block: FollowedBlock | None) -> None:
        """Another order than the learnt one: what was copied ahead and not for this block gives back its room."""
        kept = () if block is None else block.needed
        wanted = {id(offloaded_module) for offloaded_module in kept}
        for offloaded_module in lane.staged:
            if id(offloaded_module) not in wanted:
                offloaded_module.unstage()
        lane.staged = [offloaded_module for offloaded_module in lane.staged if id(offloaded_module) in wanted]

    def _stage(self, hook: FollowedBlock, device: torch.device, lane: _Lane) -> None:
        try:
            for offloaded_module in hook.needed:
                # Written down first, so that an interrupt leaves nothing behind.
                lane.staged.append(offloaded_module)
                offloaded_module.stage(lambda found: self._sent(found, device))
        except RuntimeError as error:
            # No room on the accelerator, or no pinned memory. What else there may be, the block itself will say.
            logger.info("'%s' cannot be copied ahead: %s", hook.module_name, error)
            self.room_bytes[device] = 0
            self._drop_unused(lane, None)

    def _sent(self, tensors: Sequence[torch.Tensor], device: torch.device) -> Staged:
        if all(is_fake(tensor) for tensor in tensors):
            # Of a model that is verified, whose accelerators need not be there.
            return Staged(tensors, [copied(tensor, device) for tensor in tensors], device, None)
        module = torch.get_device_module(device)
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = module.Stream(device=device)
        with module.stream(stream):
            copies = [copied(tensor, device, non_blocking=True) for tensor in tensors]
        return Staged(tensors, copies, device, stream.record_event())


def _next_brought_in(hook: FollowedBlock, tokens: int | None) -> FollowedBlock | None:
    """The next block, as learnt, whose weights are brought in in a step of so many new tokens; None where nobody can know."""
    met: set[int] = set()
    following: FollowedBlock | None = hook.follower
    while following is not None and following.host_tokens is not None:
        if tokens is None or id(following) in met:
            return None
        if tokens > following.host_tokens:
            return following
        met.add(id(following))
        following = following.follower
    return following
