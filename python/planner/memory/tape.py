"""What one recording has seen: every storage when it appears and when it goes, and beside which block. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

from planner import _core

__all__ = [
    "AFTER",
    "APART",
    "CALL",
    "DROPPED",
    "ENTER",
    "FORGET",
    "FREE",
    "LEAVE",
    "MADE",
    "OUTPUT",
    "PHASE",
    "REST",
    "Enclosing",
    "Event",
    "Row",
    "RunBytes",
    "Tape",
]

# Kinds of events, the first item of each.
MADE: Final = 0
"""(MADE, storage, bytes, place, operator): an operator has made a storage, which lies beside the block of that place.

Of a copy from beside another block, two more: storage and place of what it is a copy of, because on one device they are one."""
FREE: Final = 1
"""(FREE, storage): nobody holds it any more."""
ENTER: Final = 2
"""(ENTER, place, rows): a block is called with these tensors."""
LEAVE: Final = 3
"""(LEAVE, place): it has returned."""
APART: Final = 4
"""(APART, place, rows): the model's own code computes beside this block with tensors that lie beside others."""
FORGET: Final = 5
"""(FORGET, tensor): a tensor that was in some row is gone."""
PHASE: Final = 6
"""(PHASE, name): a forward begins; its inputs are there."""
OUTPUT: Final = 7
"""(OUTPUT, rows): it has returned these tensors."""
AFTER: Final = 8
"""(AFTER,): its results have been taken, and what only they held is gone."""
CALL: Final = 9
"""(CALL, enclosing, rows): a module around blocks is called with these tensors, which its border may bring somewhere."""
DROPPED: Final = 10
"""(DROPPED, place, bytes, storage): the forward has put something else in the place of a weight that lay beside this block; if that is
a copy of it, its storage, else -1. On one device a weight and its copy are one, which stays."""

REST: Final = 11
"""(REST, storage, bytes, place): what the block of that place keeps goes to the cpu, and rests in this storage of its own."""

Row: TypeAlias = tuple[int, int, int, int]
"""A tensor: its number, its storage's (-1 for a weight), the place of that, and its bytes."""
Event: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Enclosing:
    """A module around blocks: what runs it, where its own code finds its arguments, is told by a placement only.

    Args:
        inside: places of all tensors inside. Where they are on one device, its arguments are brought there.
        own: the place of the first tensor of its own, whose device it runs on otherwise; None without one: then its arguments stay.
    """

    inside: tuple[int, ...]
    own: int | None = None


@dataclass(frozen=True, slots=True)
class RunBytes:
    """The bytes of one run, as they are read: in the extension's columns.

    Args:
        blocks: names, as of a tape.
        notes: what else to know.
        columns: events and bytes.
    """

    blocks: tuple[str, ...]
    notes: tuple[str, ...]
    columns: _core.TapeColumns


@dataclass(frozen=True)
class Tape:
    """One recording of a prefill and of decode steps.

    Args:
        blocks: names; place 1 is beside the first, and place 0 where the inputs of the model lie.
        events: in order; see the constants above.
        assumed: where the model's code has asked for values that a recording does not have, and what it was told.
        notes: what else to know: what was recorded in the place of what runs.
        enclosing: modules around blocks, which have borders, too.
        carried: further places, numbered after those of blocks: by module around blocks and place, where its border has brought what lay there.
    """

    blocks: tuple[str, ...]
    events: tuple[Event, ...]
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    enclosing: tuple[Enclosing, ...] = ()
    carried: tuple[tuple[int, int], ...] = ()

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the forwards, in order: "prefill", "decode", "decode 2", …"""
        return tuple(event[1] for event in self.events if event[0] == PHASE)

    @cached_property
    def run(self) -> RunBytes:
        """The same to be read."""
        columns = _core.TapeColumns(
            self.events,
            blocks=len(self.blocks),
            enclosing=[(list(each.inside), each.own) for each in self.enclosing],
            carried=list(self.carried),
        )
        return RunBytes(self.blocks, self.notes, columns)

    def operators(self) -> tuple[tuple[Any, ...], ...]:
        """What has happened, without the bytes: two tapes with the same have run the same operators."""
        return tuple(_bare(event) for event in self.events)


def _bare(event: Event) -> tuple[Any, ...]:
    if event[0] in (MADE, REST):
        return event[0], event[1], *event[3:]
    if event[0] in (ENTER, APART, CALL):
        return event[0], event[1], tuple(row[:3] for row in event[2])
    if event[0] == OUTPUT:
        return event[0], tuple(row[:3] for row in event[1])
    return event
