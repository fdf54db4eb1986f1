"""What each block of a recorded run needs, in four numbers: what planning adds up by device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from planner.memory.demands import BlockDemand, Demands
from planner.memory.tape import ENTER, FORGET, FREE, LEAVE, MADE, OUTPUT, REST, Event, Tape

__all__ = ["demands_of"]


def demands_of(tapes: Iterable[Tape], *, main_needs_bytes: int = 0) -> Demands:
    """What a model needs while it runs, by block.

    Args:
        tapes: recordings of one model with the same blocks; of each number, the largest of all their phases counts.
        main_needs_bytes: what the caller of the model needs beside it where the inputs lie, as ``generate()`` does.

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
    tapes = tuple(tapes)
    names = tapes[0].blocks if tapes else ()
    cache, lasting, needs, resting = _Bytes(int), _Bytes(int), _Bytes(int), _Bytes(int)
    shared_bytes = 0
    order: dict[int, None] = {}
    for tape in tapes:
        events = _beside_blocks(tape)
        for phase in tape.phases:
            one = _Phase(events, *tape.span(phase))
            for place in range(len(names) + 1):
                cache[place] = max(cache[place], one.level[place])
                lasting[place] = max(lasting[place], one.lasting[place])
                needs[place] = max(needs[place], one.needs_of(place))
                resting[place] = max(resting[place], one.resting[place])
            shared_bytes = max(shared_bytes, one.shared_bytes)
            order |= dict.fromkeys(one.order)
    first = next(iter(order), 1)
    needs[first] = max(needs[first], needs[0] + main_needs_bytes)
    # Beside the inputs nothing of a layer's is kept, but they themselves and what their caller made.
    lasting[first] += cache[0] + lasting[0]
    resting[first] += resting[0]
    places = [*order, *(place for place in range(1, len(names) + 1) if place not in order)]
    blocks = {
        names[place - 1]: BlockDemand(
            cache_bytes=cache[place],
            lasting_bytes=lasting[place],
            needs_bytes=needs[place],
            resting_bytes=resting[place],
        )
        for place in places
        if place and names
    }
    notes = tuple(dict.fromkeys(note for tape in tapes for note in tape.notes))
    return Demands(blocks=blocks, shared_bytes=shared_bytes, method="recorded", notes=notes)


_Bytes = defaultdict[int, int]
# What so many blocks get, all devices hold; what fewer get, they hold while they run.
_MANY = 3


class _Phase:
    """One forward of a tape.

    A storage that it makes and leaves behind is kept; one that outlives the block after the one that was running is lasting; all
    others pass.
    """

    def __init__(self, events: tuple[Event, ...], start: int, end: int) -> None:
        self.events = events[start:end]
        self.before = _alive(events[:start])
        self.order: dict[int, None] = {}
        self.made: dict[int, tuple[int, int, int]] = {}  # place, bytes, how many blocks had begun
        self.gone: dict[int, int] = {}
        self.rows: dict[int, tuple[int, int]] = {}  # of arguments: storage and bytes
        self.users: dict[int, set[int]] = defaultdict(set)
        self.result_bytes = 0
        self._read()
        self.shared = {tensor for tensor, places in self.users.items() if len(places) >= _MANY}
        self.shared_bytes = self._most_shared()
        held = {self.rows[tensor][0] for tensor in self.shared}
        self.kept, self.lasting = _Bytes(int), _Bytes(int)
        self.stays: set[int] = set()  # storages that are not among what passes
        for storage, (place, size, begun) in self.made.items():
            gone = self.gone.get(storage)
            if gone is None:
                self.kept[place] += size
            elif storage in held:
                self.stays.add(storage)  # counted as shared, wherever it was made
            elif gone > begun + 1:
                self.lasting[place] += size
                self.stays.add(storage)
        self.level = self._levels()
        self.needs = self._needs()
        self.own, self.left = self._arguments()
        self.resting = _resting(events[:start], self.events)

    def needs_of(self, place: int) -> int:
        """What a block needs at once, beyond what stays."""
        own = self.needs[place] + self.own[place] + self.left[place]
        return max(own, self.result_bytes) if place == 0 else own

    def _read(self) -> None:
        begun = 0
        for event in self.events:
            kind = event[0]
            if kind == MADE:
                self.made[event[1]] = (event[3], event[2], begun)
            elif kind == FREE:
                self.gone[event[1]] = begun
            elif kind == ENTER:
                begun += 1
                self.order[event[1]] = None
                for tensor, storage, _, size in event[2]:
                    self.users[tensor].add(event[1])
                    self.rows[tensor] = (storage, size)
            elif kind == OUTPUT:
                self.result_bytes = sum(row[3] for row in event[1] if row[2] != 0)

    def _most_shared(self) -> int:
        """What blocks share at once: an encoder's arguments are gone when the decoder runs."""
        now = most = 0
        alive: set[int] = set()
        for event in self.events:
            if event[0] == ENTER:
                for tensor, _, _, size in event[2]:
                    if tensor in self.shared and tensor not in alive:
                        alive.add(tensor)
                        now += size
                most = max(most, now)
            elif event[0] == FORGET and event[1] in alive:
                alive.remove(event[1])
                now -= self.rows[event[1]][1]
        return most

    def _levels(self) -> _Bytes:
        """What lies beside each block all the time: what was there before, or what will be afterwards."""
        was, released = _Bytes(int), _Bytes(int)
        for storage, (place, size) in self.before.items():
            was[place] += size
            if storage in self.gone:
                released[place] += size
        level = _Bytes(int)
        for place in {*was, *self.kept}:
            level[place] = max(was[place], was[place] + self.kept[place] - released[place])
        self.was = was
        return level

    def _needs(self) -> _Bytes:
        """The most that passes beside each block at once."""
        now, most = _Bytes(int), _Bytes(int)
        for place in {*self.was, *self.level}:
            now[place] = self.was[place] - self.level[place]
        sizes = dict(self.before)
        for event in self.events:
            if event[0] == MADE and event[1] not in self.stays:
                place = event[3]
                sizes[event[1]] = (place, event[2])
                now[place] += event[2]
                most[place] = max(most[place], now[place])
            elif event[0] == FREE and event[1] in sizes:
                place, size = sizes.pop(event[1])
                now[place] -= size
        return most

    def _arguments(self) -> tuple[_Bytes, _Bytes]:
        """By block, its own arguments; and what the block before has left that it does not ask for."""
        own, left = _Bytes(int), _Bytes(int)
        alive: dict[int, tuple[int, int]] = {}
        handed: Mapping[int, tuple[int, int]] = {}
        for event in self.events:
            if event[0] == MADE and event[1] not in self.stays and event[1] in self.gone:
                alive[event[1]] = (event[3], event[2])
            elif event[0] == FREE:
                alive.pop(event[1], None)
            elif event[0] == LEAVE:
                handed = {storage: row for storage, row in alive.items() if row[0] == event[1]}
            elif event[0] == ENTER:
                asked = {storage for _, storage, _, _ in event[2]}
                still = sum(
                    size for storage, (_, size) in handed.items() if storage not in asked and storage in alive
                )
                left[event[1]] = max(left[event[1]], still)
                sizes = {tensor: size for tensor, _, _, size in event[2] if tensor not in self.shared}
                own[event[1]] = max(own[event[1]], sum(sizes.values()))
        return own, left


def _beside_blocks(tape: Tape) -> tuple[Event, ...]:
    """Events with what a border around blocks has brought beside the tensor whose device it runs on or, without one, beside the
    first block inside, because these are mostly on one device."""
    if not tape.carried:
        return tape.events
    beside = list(range(len(tape.blocks) + 1))
    for around in (tape.enclosing[enclosing] for enclosing, _ in tape.carried):
        beside.append(around.inside[0] if around.own is None else around.own)
    return tuple(
        (*event[:3], beside[event[3]], *event[4:]) if event[0] in (MADE, REST) else event
        for event in tape.events
    )


def _resting(before: tuple[Event, ...], events: tuple[Event, ...]) -> _Bytes:
    """By block, the most that rests on the cpu of what it keeps, as other blocks find it."""
    resting, most = _alive(before, REST), _Bytes(int)

    def look() -> None:
        now = _Bytes(int)
        for place, size in resting.values():
            now[place] += size
            most[place] = max(most[place], now[place])

    look()
    for event in events:
        if event[0] == REST:
            resting[event[1]] = (event[3], event[2])
        elif event[0] == FREE:
            resting.pop(event[1], None)
        elif event[0] == ENTER and resting:
            look()
    look()
    return most


def _alive(events: tuple[Event, ...], kind: int = MADE) -> dict[int, tuple[int, int]]:
    """By storage of a kind, place and bytes of what is there after some events."""
    found: dict[int, tuple[int, int]] = {}
    for event in events:
        if event[0] == kind:
            found[event[1]] = (event[3], event[2])
        elif event[0] == FREE:
            found.pop(event[1], None)
    return found
