"""What the blocks of a model need while they run, beyond their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from planner.choices import DemandMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDemand:
    """What one block needs on the device that runs it.

    Args:
        cache_bytes: what it keeps from one forward to the next: keys, values, states.
        lasting_bytes: what of its results lasts until the forward ends, beyond the cache.
        needs_bytes: what it needs at once while it runs, beyond these two, with its arguments and what the block before left.
        resting_bytes: what of its cache rests on the cpu, wherever the block runs.
    """

    cache_bytes: int = 0
    lasting_bytes: int = 0
    needs_bytes: int = 0
    resting_bytes: int = 0

    @property
    def exec_bytes(self) -> int:
        """What lies where the block runs as long as any block runs."""
        return self.cache_bytes + self.lasting_bytes


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a model needs while it runs, by block.

    A device that runs some of the blocks needs the sum of what these keep, the largest of what they need at once, and once
    what is shared.

    Args:
        blocks: by name, in the order of execution; blocks without an entry need nothing.
        shared_bytes: arguments that all blocks read, which each device that runs anything holds once.
        method: "recorded" from a forward, or by a "formula" from the configuration.
        notes: what to know of these numbers: what was assumed, what is bounded and not exact.
    """

    blocks: Mapping[str, BlockDemand]
    shared_bytes: int = 0
    method: DemandMethod = "formula"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", MappingProxyType(dict(self.blocks)))

    @property
    def resting_bytes(self) -> int:
        """What rests on the cpu of all blocks' caches."""
        return sum(demand.resting_bytes for demand in self.blocks.values())

    @property
    def words(self) -> str:
        """How these numbers are known, in one line."""
        known = (
            "recorded from a forward"
            if self.method == "recorded"
            else "by formula: caches as they are, activations at most"
        )
        return "; ".join((f"run-time memory {known}", *self.notes))

    @classmethod
    def most_of(cls, phases: Iterable[Demands]) -> Demands:
        """The most that any of several phases needs, block by block, so that one plan holds them all.

        Example:
            >>> prefill = Demands(blocks={"a": BlockDemand(needs_bytes=7)}, shared_bytes=1)
            >>> decode = Demands(blocks={"a": BlockDemand(cache_bytes=5, needs_bytes=2)})
            >>> Demands.most_of([prefill, decode]).blocks["a"]
            BlockDemand(cache_bytes=5, lasting_bytes=0, needs_bytes=7, resting_bytes=0)
        """
        each = list(phases)
        if len(each) == 1:
            return each[0]
        names = dict.fromkeys(name for phase in each for name in phase.blocks)
        return cls(
            blocks={name: _most([phase.blocks.get(name, BlockDemand()) for phase in each]) for name in names},
            shared_bytes=max((phase.shared_bytes for phase in each), default=0),
            method="recorded" if all(phase.method == "recorded" for phase in each) else "formula",
            notes=tuple(dict.fromkeys(note for phase in each for note in phase.notes)),
        )


def _most(demands: list[BlockDemand]) -> BlockDemand:
    return BlockDemand(
        cache_bytes=max(demand.cache_bytes for demand in demands),
        lasting_bytes=max(demand.lasting_bytes for demand in demands),
        needs_bytes=max(demand.needs_bytes for demand in demands),
        resting_bytes=max(demand.resting_bytes for demand in demands),
    )
