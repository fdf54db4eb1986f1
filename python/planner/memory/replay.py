"""The bytes of a recorded run on every device of a placement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.memory.tape import (
    AFTER,
    APART,
    CALL,
    DROPPED,
    ENTER,
    FORGET,
    FREE,
    LEAVE,
    MADE,
    OUTPUT,
    PHASE,
    REST,
    Enclosing,
    Event,
    Row,
    Tape,
)

__all__ = ["RunPlacement", "replay"]

DeviceKey = int | str

# Offloaded blocks of which dispatch copies one ahead.
_FEWEST_AHEAD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlacement:
    """Where a model lies and runs, as far as memory is concerned.

    Args:
        execution: by block, the device that runs it.
        main_device: where the model's inputs go, and its results.
        resident_bytes: by device, weights and buffers that lie there all the time.
        offloaded_bytes: by offloaded block, what is brought in while it runs.
        room_bytes: by device, what offloaded blocks may take there together, so that the next is copied ahead; none without it.
        beside_bytes: what the model's caller takes on the main device beside the results of each forward, and lets go before the next.
        is_order_known: the model has run before, so that its first forward copies ahead, too.
    """

    execution: Mapping[str, DeviceKey]
    main_device: DeviceKey
    resident_bytes: Mapping[DeviceKey, int] = field(default_factory=dict)
    offloaded_bytes: Mapping[str, int] = field(default_factory=dict)
    room_bytes: Mapping[DeviceKey, int] = field(default_factory=dict)
    beside_bytes: int = 0
    is_order_known: bool = False

    @property
    def devices(self) -> tuple[DeviceKey, ...]:
        """All that are named, each once."""
        return tuple(dict.fromkeys([self.main_device, *self.execution.values(), *self.resident_bytes]))


def replay(tape: Tape, placement: RunPlacement) -> dict[str, dict[DeviceKey, int]]:
    """The most bytes on each device in each phase.

    Args:
        tape: a recording.
        placement: where everything lies and runs. Blocks that it does not name run on the main device.

    Returns:
        By phase and device, the peak in bytes, weights included.

    Cost: O(events).

    Example:
        >>> from planner.memory.tape import Tape, PHASE, MADE, FREE, AFTER
        >>> tape = Tape(("0",), ((PHASE, "prefill"), (MADE, 0, 64, 1, "mm"), (FREE, 0), (AFTER,)))
        >>> replay(tape, RunPlacement(execution={"0": 1}, main_device=0, resident_bytes={0: 8, 1: 16}))
        {'prefill': {0: 8, 1: 80}}
    """
    return _Replay(tape, placement).run()


# Where what an offloaded cache keeps rests.
_REST: DeviceKey = "cpu"
# Items of an event that tells of a storage that is no copy.
_PLAIN = 5


class _Replay:
    def __init__(self, tape: Tape, placement: RunPlacement) -> None:
        self.tape = tape
        self.placement = placement
        main = placement.main_device
        self.devices = [main, *(placement.execution.get(name, main) for name in tape.blocks)]
        self.enclosing_devices = [self._device_of(enclosing) for enclosing in tape.enclosing]
        for enclosing, place in tape.carried:
            brought = self.enclosing_devices[enclosing]
            self.devices.append(self.devices[place] if brought is None else brought)
        rests = [_REST] if any(event[0] == REST for event in tape.events) else []
        self.alive_bytes: dict[DeviceKey, int] = dict.fromkeys([*placement.devices, *rests], 0)
        self.alive_bytes.update(placement.resident_bytes)
        self.peaks: dict[str, dict[DeviceKey, int]] = {}
        self.top: dict[DeviceKey, int] | None = None
        self.storages: dict[int, tuple[DeviceKey, int]] = {}
        # By storage, its copies that are none, because both lie on one device.
        self.same: dict[int, list[int]] = {}
        # Copies of tensors on other devices, by tensor; they go with it, or with the forward.
        self.copies: dict[int, dict[DeviceKey, int]] = {}
        self.results_bytes = 0
        self.returned: set[int] = set()
        self.ahead = _Ahead(self)

    def run(self) -> dict[str, dict[DeviceKey, int]]:
        steps = {
            MADE: self._make,
            REST: self._rest,
            FREE: self._free,
            ENTER: self._enter,
            LEAVE: self._leave,
            APART: self._bring,
            CALL: self._call,
            DROPPED: self._drop,
            FORGET: self._forget,
            PHASE: self._begin,
            OUTPUT: self._return,
            AFTER: self._after,
        }
        for event in self.tape.events:
            steps[event[0]](event)
        return self.peaks

    def _make(self, event: Event) -> None:
        device = self.devices[event[3]]
        is_there = len(event) > _PLAIN and self._device(event[5], event[6]) == device
        size = 0 if is_there else event[2]
        self.storages[event[1]] = (device, size)
        if is_there:
            self.same.setdefault(event[5], []).append(event[1])
        self.take(device, size)

    def _rest(self, event: Event) -> None:
        self.storages[event[1]] = (_REST, event[2])
        self.take(_REST, event[2])

    def _free(self, event: Event) -> None:
        device, size = self.storages.pop(event[1])
        self._let_go(device, size, self.same.pop(event[1], []))

    def _drop(self, event: Event) -> None:
        _, place, size, copy = event
        device = self.devices[place]
        if self.placement.offloaded_bytes.get(self.tape.name(place)):
            return  # it is brought in as often as its block runs
        self._let_go(device, size, [copy])

    def _let_go(self, device: DeviceKey, size: int, copies: list[int]) -> None:
        """Something is gone, unless a copy is there that is none; of these, the last one to go takes the bytes along."""
        same = [copy for copy in copies if self.storages.get(copy) == (device, 0)]
        if same:
            self.storages[same[0]] = (device, size)
            self.same[same[0]] = same[1:]
        else:
            self.alive_bytes[device] -= size

    def _forget(self, event: Event) -> None:
        for device, size in self.copies.pop(event[1], {}).items():
            self.alive_bytes[device] -= size

    def _enter(self, event: Event) -> None:
        self._bring(event)
        self.ahead.enter(self.tape.name(event[1]))

    def _leave(self, event: Event) -> None:
        self.ahead.leave(self.tape.name(event[1]))

    def _begin(self, event: Event) -> None:
        self.top = self.peaks[event[1]] = dict(self.alive_bytes)
        self.ahead.begin()

    def _after(self, _: Event) -> None:
        self.alive_bytes[self.placement.main_device] -= self.results_bytes
        self.results_bytes = 0
        # What the caller keeps of the results is the copy where the inputs lie.
        for storage in self.returned & self.storages.keys():
            device, size = self.storages[storage]
            self.alive_bytes[device] -= size
            self.storages[storage] = (self.placement.main_device, size)
            self.alive_bytes[self.placement.main_device] += size
        self.returned.clear()
        self.top = None

    def _device_of(self, enclosing: Enclosing) -> DeviceKey | None:
        """Where dispatch runs a module around blocks; None where it leaves the arguments as they are."""
        inside = {self.devices[place] for place in enclosing.inside}
        if len(inside) == 1:
            return inside.pop()
        return None if enclosing.own is None else self.devices[enclosing.own]

    def _call(self, event: Event) -> None:
        device = self.enclosing_devices[event[1]]
        if device is not None:
            self._bring_to(device, event[2])

    def _device(self, storage: int, place: int) -> DeviceKey:
        """Where a storage is found; a weight lies where its block runs."""
        while place > len(self.tape.blocks):
            enclosing, place = self.tape.carried[place - len(self.tape.blocks) - 1]
            brought = self.enclosing_devices[enclosing]
            if brought is not None:
                return brought
        found = self.storages.get(storage)
        return self.devices[place] if found is None else found[0]

    def take(self, device: DeviceKey, size: int) -> None:
        now = self.alive_bytes[device] = self.alive_bytes[device] + size
        if self.top is not None and now > self.top[device]:
            self.top[device] = now

    def _bring(self, event: Event) -> None:
        self._bring_to(self.devices[event[1]], event[2])

    def _bring_to(self, device: DeviceKey, rows: tuple[Row, ...]) -> None:
        for tensor, storage, its_place, size in rows:
            if self._device(storage, its_place) == device:
                continue
            copies = self.copies.setdefault(tensor, {})
            if device not in copies:
                copies[device] = size
                self.take(device, size)

    def _return(self, event: Event) -> None:
        """The model's results go to where its inputs lie; then nothing is left of what the forward has copied."""
        main = self.placement.main_device
        for _, storage, place, size in event[1]:
            if self._device(storage, place) != main:
                self.take(main, size)
                self.results_bytes += size
                self.returned.add(storage)
        for copies in self.copies.values():
            for device, size in copies.items():
                self.alive_bytes[device] -= size
        self.copies.clear()
        self.ahead.end()
        beside_bytes = self.placement.beside_bytes
        self.take(main, beside_bytes)
        self.alive_bytes[main] -= beside_bytes


class _Ahead:
    """Offloaded blocks as dispatch brings them in: the order is learnt in one forward, and the next is copied ahead from then on.

    The first is copied ahead when a forward begins, as what follows the whole model's own code.
    """

    def __init__(self, replay: _Replay) -> None:
        self.replay = replay
        self.offloaded_bytes = replay.placement.offloaded_bytes
        self.room_bytes = replay.placement.room_bytes
        self.follower: dict[str | None, str] = {}  # None for the whole model
        self.last: str | None = None
        self.staged: str | None = None
        # With one block alone, dispatch copies nothing ahead.
        served = sum(self._device(block) in self.room_bytes for block in self.offloaded_bytes)
        self.is_on = served >= _FEWEST_AHEAD
        if replay.placement.is_order_known and self.is_on:
            self._learn(replay.tape)

    def _learn(self, tape: Tape) -> None:
        last: str | None = None
        for event in tape.events:
            if event[0] == ENTER and (block := tape.name(event[1])) in self.offloaded_bytes:
                self.follower[last] = block
                last = block
            elif event[0] == OUTPUT:
                last = None

    def _device(self, block: str) -> DeviceKey:
        placement = self.replay.placement
        return placement.execution.get(block, placement.main_device)

    def begin(self) -> None:
        self._stage(None, 0)

    def enter(self, block: str) -> None:
        if block not in self.offloaded_bytes:
            return
        if self.staged == block:
            self.staged = None
        else:
            # A wrong guess goes before what is really next is brought in.
            self._drop()
            self.replay.take(self._device(block), self.offloaded_bytes[block])
        self.follower[self.last] = block
        self.last = block
        self._stage(block, self.offloaded_bytes[block])

    def _stage(self, block: str | None, size: int) -> None:
        """Sends for what follows a block, if there is room for both."""
        following = self.follower.get(block)
        if following is None or following == block or not self.is_on:
            return
        together = size + self.offloaded_bytes[following]
        if together <= self.room_bytes.get(self._device(following), 0):
            self.staged = following
            self.replay.take(self._device(following), self.offloaded_bytes[following])

    def leave(self, block: str) -> None:
        if block in self.offloaded_bytes:
            self.replay.alive_bytes[self._device(block)] -= self.offloaded_bytes[block]

    def end(self) -> None:
        self.last = None
        self._drop()

    def _drop(self) -> None:
        if self.staged is not None:
            self.replay.alive_bytes[self._device(self.staged)] -= self.offloaded_bytes[self.staged]
            self.staged = None


def totals(peaks: Mapping[str, Mapping[DeviceKey, int]]) -> dict[str, dict[DeviceKey, int]]:
    """Peaks by kind of phase: "prefill", and of all decode steps the largest."""
    found: dict[str, dict[DeviceKey, int]] = defaultdict(dict)
    for phase, by_device in peaks.items():
        kind = phase.partition(" ")[0]
        for device, size in by_device.items():
            found[kind][device] = max(size, found[kind].get(device, 0))
    return dict(found)
