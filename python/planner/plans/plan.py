"""The plan: where everything goes, in bytes and reasons; frozen, comparable, and the same in JSON everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.devices.keys import DeviceKey
from planner.errors import InvalidInputError
from planner.known_names import KnownNames
from planner.memory.demands import Demands
from planner.names import counted
from planner.plans.map_alone import execution_map_notice
from planner.plans.parts import PlanParts, PredictedPeaks, Reason, Setting, Shortfall, Source
from planner.plans.serialize import read_json, write_json
from planner.plans.torchrun import torchrun_lines
from planner.units import format_bytes

if TYPE_CHECKING:
    from planner.plans.diff import PlanDiff

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan(PlanParts):
    """Where a model goes, and why.

    Args:
        devices: bytes by device, in order of preference.
        device_map: names to devices: the fewest keys that cover every tensor, in execution order.
        execution_map: names to devices, for what runs elsewhere than it lies. A loader that gets the device map alone runs that on
            the first accelerator of the map; the summary says so where the plan has room for it elsewhere.
        offloaded_bytes: bytes by tier, "cpu" and "disk"; where there is no accelerator, the cpu does not count.
        certificate: how good it is known to be.
        timing: how long a step is modelled to take; None of strategies that do not go by time.
        account: source, names, block bytes, reasons, shortfall, minimum bytes, settings, provenance,
            demands and predicted peaks, which the properties of these names read.

    Guarantee: immutable; picklable; equal problems give equal plans and the same bytes of canonical JSON.
    """

    @property
    def source(self) -> Source:
        """What was planned."""
        return self.account.source

    @property
    def names(self) -> KnownNames:
        """Every name of the model's modules and tensors; none for a plan that was written before plans had them."""
        return self.account.names

    @property
    def block_bytes(self) -> Mapping[str, int]:
        """By block, in execution order, its stored bytes, each tensor where it is met first; of a block that the device map
        takes apart, those of its parts. Empty for a plan that was written before plans had them."""
        return self.account.block_bytes

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Every decision, in execution order."""
        return self.account.reasons

    @property
    def shortfall(self) -> Shortfall | None:
        """What would keep everything on the accelerators; None where it is there."""
        return self.account.shortfall

    @property
    def minimum_bytes(self) -> Mapping[DeviceKey, int | None]:
        """The devices that should hold weights and got none, and with accelerate's strategies the least budget of that
        device, the others as they are, with which it gets some; None where there is none, or none is known.

        With ``auto`` these are the accelerators that hold nothing; otherwise those that a block was too large for, with
        the cpu among them.
        """
        return self.account.minimum_bytes

    @property
    def settings(self) -> Mapping[str, Setting]:
        """By path, the value of a setting and who said it."""
        return self.account.settings

    @property
    def provenance(self) -> Mapping[str, str]:
        """By path, who said a setting, without lines of code and folders; takes no part in equality, hash and canonical JSON."""
        return self.account.provenance

    @property
    def demands(self) -> Demands | None:
        """What the blocks need while they run, and how that is known; None without a workload."""
        return self.account.demands

    @property
    def predicted_peaks(self) -> PredictedPeaks:
        """By phase ("prefill", "decode") and device, the most bytes that are asked for at one time: weights, caches, activations
        and blocks that are streamed. Empty without a workload."""
        return self.account.predicted_peaks

    def to_json(self, *, provenance: bool = True) -> str:
        """One line of JSON; ``docs/plan-file.md`` says what its fields mean.

        Args:
            provenance: include who said each setting; without it, equal plans have equal text.

        Guarantee: the same bytes whatever folder the same call was made from.
        """
        return write_json(self, provenance=provenance)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            InvalidInputError: not JSON, not a plan, or of a version this planner does not know.
        """
        return cls(**vars(read_json(text)))

    def diff(self, other: Plan) -> PlanDiff:
        """What the other plan places differently; ``str`` of it says so in words.

        Raises:
            InvalidInputError: no plan.

        Cost: O(keys of both device maps).

        Example:
            >>> import torch
            >>> from planner import plan
            >>> model = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(4)))
            >>> print(plan(model, max_memory={0: 800, 1: 800}).diff(plan(model, max_memory={0: 400, 1: 1200})))
            1: 0 → 1
            0: 800 B → 400 B used
            1: 800 B → 1.17 KiB used
        """
        from planner.plans.diff import PlanDiff, UsageDifference, moved_names  # few plans are compared

        if not isinstance(other, Plan):
            raise InvalidInputError(f"a plan differs from another plan; got {type(other).__name__}")
        left, right = ({device.id: device for device in each.devices} for each in (self, other))
        usage = (
            UsageDifference(
                device,
                *(0 if each is None else each.used_bytes for each in pair),
                *(0 if each is None else each.running_bytes for each in pair),
            )
            for device, pair in ((device, (left.get(device), right.get(device))) for device in left | right)
        )
        return PlanDiff(
            moved=moved_names(self.device_map, other.device_map),
            usage=tuple(each for each in usage if each.differs),
        )

    def summary(self) -> str:
        """The plan in words: a line for each device, one for what is offloaded, and one where the device map alone is not enough; of a
        plan by time what it is modelled to take, and what starts it with a process for each device where it can be a pipeline."""
        lines = [f"{counted(self.source.blocks, 'block')}, {format_bytes(self.source.total_bytes)}"]
        demands = self.account.demands
        if demands is not None:
            lines.append(demands.words)
        for device in self.devices:
            what = "weights" if demands else "used"
            parts = [f"{format_bytes(device.used_bytes)} {what}"]
            if device.buffer_bytes:
                parts.append(f"{format_bytes(device.buffer_bytes)} buffers of offloaded blocks")
            if device.cache_bytes:
                parts.append(f"{format_bytes(device.cache_bytes)} cache")
            if device.activation_bytes:
                parts.append(f"{format_bytes(device.activation_bytes)} activations")
            if device.margin_bytes:
                parts.append(f"{format_bytes(device.margin_bytes)} allocator's margin")
            if device.reserved_bytes:
                parts.append(f"{format_bytes(device.reserved_bytes)} kept for streaming")
            if device.headroom_bytes:
                parts.append(f"{format_bytes(device.headroom_bytes)} headroom")
            if device.free_bytes is not None:
                parts.append(f"{format_bytes(device.free_bytes)} free")
            lines.append(f"  {device.id}: {', '.join(parts)}")
        offloaded = sum(self.offloaded_bytes.values())
        lines.append(
            f"offloaded: {format_bytes(offloaded)} ({self.certificate.proof})"
            if offloaded
            else "nothing is offloaded"
        )
        needs_map = execution_map_notice(self)
        timing = self.timing
        last = [
            *([needs_map] if needs_map else []),
            *self.source.doubts,
            *([timing.long_steps] if timing and timing.long_steps else []),
            *([timing.sentence] if timing else []),
            *(torchrun_lines(self) if timing else ()),
        ]
        return "\n".join((*lines, *last))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_json(provenance=False) == other.to_json(provenance=False)

    def __hash__(self) -> int:
        return hash(self.to_json(provenance=False))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Plan.from_json, (self.to_json(),))

    def __repr__(self) -> str:
        parts = ", ".join(f"{device.id}: {device.used_bytes}" for device in self.devices)
        return (
            f"Plan({counted(self.source.blocks, 'block')}, used bytes {{{parts}}}, {self.certificate.stage})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, bars, the strip, and what to do."""
        from planner.plans.notebook import snippet  # most plans are never shown

        return snippet(self)
