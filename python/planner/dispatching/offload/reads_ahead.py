"""Who brings the next offloaded blocks while one computes: what is asked of it, and several of them as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from planner.dispatching.offload.refcount import OffloadedModule
from planner.dispatching.offload.store import OffloadStore

__all__ = ["MakesReadsAhead", "OffloadedBlock", "ReadsAhead", "SeveralAhead", "StagedTensors", "Streams"]


class OffloadedBlock(Protocol):
    """What reading ahead knows of a block.

    Args:
        device: where it runs.
        module_name: its name.
    """

    device: torch.device | None
    module_name: str

    @property
    def host_tokens(self) -> int | None:
        """Up to how many new tokens the cpu runs it where its weights rest; None for one that is always brought in."""

    @property
    def needed(self) -> tuple[OffloadedModule, ...]:
        """The offloaded tensors that are brought in for it."""

    def resting_bytes(self) -> int:
        """Bytes of these."""


class StagedTensors(Protocol):
    """Tensors of one offloaded module on their way: copies of what rests, or reads.

    Args:
        origins: what they were made from, by slot; to be read after :meth:`take`.
    """

    origins: Sequence[torch.Tensor]

    def take(self, device: torch.device, store: OffloadStore) -> Sequence[torch.Tensor] | None:
        """The tensors by slot, once they are there; None if they are not what is wanted now, which is read as ever then."""


class ReadsAhead(Protocol):
    """Sends for offloaded blocks before they are needed.

    Guarantee: outputs are the same as without it. What it keeps for itself, such as threads, copies of the model do not
        share, and is gone after :meth:`close`.
    """

    def serves(self, block: OffloadedBlock) -> bool:
        """Whether it looks after a block."""

    def needing(self, block: OffloadedBlock) -> None:
        """To be called before a block's weights are brought in.

        Raises:
            OffloadError: they cannot be had. Fields: ``name``.
        """

    def computing(self, block: OffloadedBlock) -> None:
        """To be called when a block has its weights and is about to compute."""

    def sized(self, block: OffloadedBlock, tokens: int) -> None:
        """To be called before a block that the cpu runs in short steps: of how many new tokens this one is."""

    def passing(self, block: OffloadedBlock) -> None:
        """To be called in the place of the two above when the cpu is about to run a block where its weights rest."""

    def begin(self, forward: object) -> None:
        """To be called before a forward of the whole model; :meth:`finish` ends it.

        Raises:
            OffloadError: what rests elsewhere is not what it was. Fields: ``name``.
        """

    def finish(self, forward: object) -> None:
        """To be called after a forward, once or more: what was read ahead and not used goes."""

    def close(self) -> None:
        """Ends it for good; to be called when the dispatch is undone, once or more."""


# Of the offloaded blocks of a model, in its order.
MakesReadsAhead = Callable[[Sequence[OffloadedBlock]], ReadsAhead]


class Streams(Protocol):
    """What makes one that reads ahead, and starts it."""

    @property
    def made(self) -> MakesReadsAhead | None:
        """The factory that a request takes; None where nothing is read ahead."""

    def start(self) -> None:
        """Asks for the first block, once the model is as it will run."""


class SeveralAhead:
    """Several that read ahead, each for blocks of its own, as one.

    Args:
        parts: these; a block belongs to the first that serves it.
    """

    def __init__(self, parts: Sequence[ReadsAhead]) -> None:
        self.parts = tuple(parts)

    def serves(self, block: OffloadedBlock) -> bool:
        """Whether any does."""
        return any(part.serves(block) for part in self.parts)

    def needing(self, block: OffloadedBlock) -> None:
        """As of each."""
        for part in self._concerned(block):
            part.needing(block)

    def computing(self, block: OffloadedBlock) -> None:
        """As of each."""
        for part in self._concerned(block):
            part.computing(block)

    def sized(self, block: OffloadedBlock, tokens: int) -> None:
        """As of each."""
        for part in self._concerned(block):
            part.sized(block, tokens)

    def passing(self, block: OffloadedBlock) -> None:
        """As of each."""
        for part in self._concerned(block):
            part.passing(block)

    def begin(self, forward: object) -> None:
        """As of each."""
        for part in self.parts:
            part.begin(forward)

    def finish(self, forward: object) -> None:
        """As of each, also when one raises."""
        _each([part.finish for part in self.parts], forward)

    def close(self) -> None:
        """As of each, also when one raises."""
        _each([part.close for part in self.parts])

    def _concerned(self, block: OffloadedBlock) -> Sequence[ReadsAhead]:
        """Whom a block belongs to; the model around all blocks is of interest to everyone."""
        owner = next((part for part in self.parts if part.serves(block)), None)
        return self.parts if owner is None else (owner,)


def _each(calls: Sequence[Callable[..., None]], *args: object) -> None:
    if not calls:
        return
    try:
        calls[0](*args)
    finally:
        _each(calls[1:], *args)
