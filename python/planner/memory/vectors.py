"""What each block of a recorded run needs, in four numbers: what planning adds up by device."""

from __future__ import annotations

from collections.abc import Iterable

from planner.memory.demands import BlockDemand, Demands
from planner.memory.tape import RunBytes, Tape

__all__ = ["demands_of"]


def demands_of(runs: Iterable[Tape | RunBytes], *, main_needs_bytes: int = 0, kind: str = "") -> Demands:
    """What a model needs while it runs, by block.

    Args:
        runs: recordings of one model with the same blocks; of each number, the largest of all their phases counts.
        main_needs_bytes: what the caller of the model needs beside it where the inputs lie, as ``generate()`` does.
        kind: what the names of the phases that count begin with; what was before these is there.

    Guarantee: on a device, cache and lasting bytes of its blocks, the shared bytes, and the largest needs among its blocks are not below
        the peak of a replay with these blocks there, but for a few per cent where an argument of one or two blocks outlives them on
        another device than it was made on; a replay tells. What lies where the inputs lie is counted with the first block.

    Cost: O(events).

    Example:
        >>> from planner.memory.tape import Tape, PHASE, MADE, AFTER, ENTER, LEAVE
        >>> events = ((PHASE, "prefill"), (ENTER, 1, ()), (MADE, 0, 64, 1, "cat"), (LEAVE, 1), (AFTER,))
        >>> demands_of([Tape(("0",), events)]).blocks["0"].cache_bytes
        64
    """
    each = [run.run if isinstance(run, Tape) else run for run in runs]
    told = [run.columns.demands(kind) for run in each]
    names = each[0].blocks if each else ()
    # By place, the most of each number: that of the inputs first.
    most = [
        tuple(max(numbers) for numbers in zip(*rows, strict=True))
        for rows in zip(*(places for places, _, _ in told), strict=True)
    ]
    order = dict.fromkeys(place for _, _, places in told for place in places)
    places = [*order, *(place for place in range(1, len(names) + 1) if place not in order)]
    first = places[0] if places else 0
    blocks: dict[str, BlockDemand] = {}
    for place in places:
        cache, lasting, needs, resting = most[place]
        if place == first:
            beside = most[0]
            needs = max(needs, beside[2] + main_needs_bytes)
            # Beside the inputs nothing of a layer's is kept, but they themselves and what their caller made.
            lasting += beside[0] + beside[1]
            resting += beside[3]
        blocks[names[place - 1]] = BlockDemand(
            cache_bytes=cache, lasting_bytes=lasting, needs_bytes=needs, resting_bytes=resting
        )
    notes = tuple(dict.fromkeys(note for run in each for note in run.notes))
    shared_bytes = max((shared for _, shared, _ in told), default=0)
    return Demands(blocks=blocks, shared_bytes=shared_bytes, method="recorded", notes=notes)
