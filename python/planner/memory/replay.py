"""The bytes of a recorded run on every device of a placement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.memory.tape import RunBytes, Tape

__all__ = ["RunPlacement", "replay", "totals"]

DeviceKey = int | str

# Where what an offloaded cache keeps rests.
_REST: DeviceKey = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlacement:
    """Where a model lies and runs, as far as memory is concerned.

    Args:
        execution: by block, the device that runs it.
        main_device: where the model's inputs go, and its results.
        resident_bytes: by device, weights and buffers that lie there all the time.
        offloaded_bytes: by offloaded block, what is brought in while it runs.
        never_ahead_bytes: of that, what is not copied ahead.
        room_bytes: by device, what offloaded blocks may take there together, so that the next is copied ahead; none without it.
        beside_bytes: what the model's caller takes on the main device beside the results of each forward, and lets go before the next.
        is_order_known: the model has run before, so that its first forward copies ahead, too.
    """

    execution: Mapping[str, DeviceKey]
    main_device: DeviceKey
    resident_bytes: Mapping[DeviceKey, int] = field(default_factory=dict)
    offloaded_bytes: Mapping[str, int] = field(default_factory=dict)
    never_ahead_bytes: Mapping[str, int] = field(default_factory=dict)
    room_bytes: Mapping[DeviceKey, int] = field(default_factory=dict)
    beside_bytes: int = 0
    is_order_known: bool = False

    @property
    def devices(self) -> tuple[DeviceKey, ...]:
        """All that are named, each once."""
        return tuple(dict.fromkeys([self.main_device, *self.execution.values(), *self.resident_bytes]))


def replay(tape: Tape | RunBytes, placement: RunPlacement) -> dict[str, dict[DeviceKey, int]]:
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
    run = tape.run if isinstance(tape, Tape) else tape
    rests = [_REST] if run.columns.rests() else []
    devices, main = list(dict.fromkeys([*placement.devices, *rests])), placement.main_device
    numbers = {device: number for number, device in enumerate(devices)}
    peaks = run.columns.replay(
        execution=[numbers[placement.execution.get(name, main)] for name in run.blocks],
        main_device=numbers[main],
        resident=[placement.resident_bytes.get(device, 0) for device in devices],
        offloaded=[placement.offloaded_bytes.get(name) for name in run.blocks],
        never_ahead=[placement.never_ahead_bytes.get(name, 0) for name in run.blocks],
        room=[placement.room_bytes.get(device) for device in devices],
        rest=numbers[_REST] if rests else None,
        beside=placement.beside_bytes,
        is_order_known=placement.is_order_known,
    )
    by_device = (dict(zip(devices, most, strict=True)) for most in peaks)
    return dict(zip(run.columns.phases(), by_device, strict=True))


def totals(peaks: Mapping[str, Mapping[DeviceKey, int]]) -> dict[str, dict[DeviceKey, int]]:
    """Peaks by kind of phase: "prefill", and of all decode steps the largest."""
    found: dict[str, dict[DeviceKey, int]] = defaultdict(dict)
    for phase, by_device in peaks.items():
        kind = phase.partition(" ")[0]
        for device, size in by_device.items():
            found[kind][device] = max(size, found[kind].get(device, 0))
    return dict(found)
