"""What a plan consists of: plain records of devices, decisions, settings and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

from planner.choices import DeviceKind, Phase, RankName, ReasonRule, SourceKind, Stage
from planner.devices.keys import DeviceKey
from planner.known_names import KnownNames
from planner.memory.demands import Demands
from planner.plans.device_map import DeviceMap, Own
from planner.plans.timing import Timing

BEFORE_QUANTIZATION = "sizes are those before quantization, which only a checkpoint's files tell"
"""A note that puts every number of bytes in doubt; it is shown wherever bytes are."""

ESTIMATED = "sizes are an estimate"
"""How another such note begins."""

LEFT_OUT = "sizes leave out"
"""How a third begins: what the model has besides is not here."""

BOTH_ENDS = "counted at both ends"
"""How a note of tied tensors begins that an engine holds twice."""

PLACING: tuple[ReasonRule, ...] = ("resident", "offloaded", "oversized", "fits", "tied", "bound", "fallback")
"""Rules whose device is where the module lies; the others tell what was tried."""


PredictedPeaks: TypeAlias = Mapping[Phase, Mapping[DeviceKey, int]]
"""By phase and device, the most bytes at one time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUsage:
    """Bytes on one device.

    Args:
        device: its key.
        budget_bytes: what weights may use; None is without limit.
        used_bytes: stored bytes of the tensors placed there, each once.
        reserved_bytes: room kept free for the largest layer when the device was left.
    """

    device: DeviceKey
    budget_bytes: int | float | None
    used_bytes: int
    reserved_bytes: int

    @property
    def free_bytes(self) -> int | float | None:
        """What is neither used nor reserved, at least 0; None is without limit."""
        if self.budget_bytes is None:
            return None
        return max(0, self.budget_bytes - self.used_bytes - self.reserved_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One decision of a strategy.

    Args:
        rule: "fits", "tied", "bound", "fallback", "split", "split_tied", "next_device"; of ``auto``: "resident",
            "offloaded", "oversized", "first_block", "no_room", "fused_experts".
        name: the module or tensor decided on.
        device: the device it was measured against.
        needed_bytes: what it needs there with all that is tied to it.
        available_bytes: what the device had left after the reservation, negative if the reservation alone is too much;
            None is without limit.
    """

    rule: ReasonRule
    name: str
    device: DeviceKey
    needed_bytes: int
    available_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What was planned.

    Args:
        kind: a live "module", a "checkpoint" or a "config".
        fingerprint: digest of names, sizes and options.
        blocks: how many there are.
        total_bytes: stored bytes of all tensors, each once.
        notes: what to know of its names and sizes.
        name: what it is called: the folder, the repository on the hub, or a live model's class; "" if unknown.
        format: how its weights are stored, or will be once they are loaded, as people say it: "bfloat16", "nf4", "gptq 4-bit".
        layers: length of its main list of repeated layers; 0 without one.
    """

    kind: SourceKind
    fingerprint: str
    blocks: int
    total_bytes: int
    notes: tuple[str, ...] = ()
    name: str = ""
    format: str = ""
    layers: int = 0

    @property
    def doubts(self) -> tuple[str, ...]:
        """Notes that put every number of bytes in doubt."""
        return doubts(self.notes)


def doubts(notes: Iterable[str]) -> tuple[str, ...]:
    """Of notes, those that put every number of bytes in doubt."""
    return tuple(note for note in notes if note.startswith((BEFORE_QUANTIZATION, ESTIMATED, LEFT_OUT)))


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """One device in a plan: ``budget = headroom + margin + used + buffer + cache + activation + reserved + free``, in bytes; None is
    without limit.

    Args:
        id: its key.
        kind: "accelerator", "cpu" or "disk".
        pool: devices of one pool share their memory.
        origin: where the budget comes from.
        name: what the card is called, where it was detected.
        buffer_bytes: buffers of offloaded blocks, which stay where these run; unless ``offload_buffers`` is said, and of
            buffers that are not saved always.
        cache_bytes: keys, values and states of the blocks that run there, with the plan's workload.
        activation_bytes: what these blocks need besides while they run.
        margin_bytes: what the allocator of torch may take beyond what is asked of it.
        peak_bytes: the most that is asked of it there at one time: weights, cache, activations and blocks that are streamed; 0
            without a workload.
    """

    id: DeviceKey
    kind: DeviceKind
    pool: str | None
    budget_bytes: int | None
    headroom_bytes: int
    used_bytes: int
    reserved_bytes: int
    free_bytes: int | None
    origin: str
    name: str | None = None
    buffer_bytes: int = 0
    cache_bytes: int = 0
    activation_bytes: int = 0
    margin_bytes: int = 0
    peak_bytes: int = 0

    @property
    def running_bytes(self) -> int:
        """What a workload takes there beyond weights: cache, activations and the allocator's margin."""
        return self.cache_bytes + self.activation_bytes + self.margin_bytes

    @property
    def taken_bytes(self) -> int:
        """What is neither free nor headroom."""
        return self.used_bytes + self.buffer_bytes + self.reserved_bytes + self.running_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """How good a plan is known to be.

    Args:
        proven: no plan offloads less.
        lower_bound_bytes: no plan offloads less than this.
        gap_bytes: what this plan offloads beyond it.
        returns: times that execution comes back to a device it had left; a unit counts once, at its first block.
        returns_lower_bound: no plan with as many bytes offloaded and on disk, which needs no execution map if this plan needs
            none, and has its first block on an accelerator if this plan has it there, returns less often.
        steps: steps of the search.
        stage: which way of placing units gave the plan: "in_order", "other_order", "tie_position", "scattered", "offload",
            or the name of a strategy without a search.

    Guarantee: "no plan" is about every plan that gives each unit one home within budgets, constraints and mode, and each
        offloaded block a device that runs it and keeps ``staging_blocks`` times the largest such block free: any
        accelerator, several of them too; or the cpu, for a block larger than every accelerator and with
        ``execute_offloaded="cpu"``. With ``granularity="module"`` it is about all blocks whole, and all in parts.
    """

    proven: bool
    lower_bound_bytes: int
    gap_bytes: int
    returns: int
    returns_lower_bound: int
    steps: int
    stage: Stage

    @property
    def proof(self) -> str:
        """In words, whether the offloaded bytes are the least."""
        return "proven least" if self.proven else "not proven least"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """What keeps something off the accelerators.

    Args:
        name: the largest block concerned.
        more_bytes: by device, the extra bytes that alone would let everything stay there.
        smaller_formats: by quantiser's format, about how many bytes the whole model would have in it; only clearly smaller ones.
    """

    name: str
    more_bytes: Mapping[DeviceKey, int]
    smaller_formats: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A resolved setting: its value as plain data, and who said it."""

    value: Any
    rank: RankName


class Account:
    """The story of a plan, which most callers never ask for: each part is made when it is first read.

    Args:
        source, names, block_bytes, reasons, shortfall, minimum_bytes, settings, provenance, demands, predicted_peaks: make the
            property of that name; pure.
    """

    def __init__(
        self,
        *,
        source: Callable[[], Source],
        names: Callable[[], KnownNames],
        block_bytes: Callable[[], Mapping[str, int]],
        reasons: Callable[[], tuple[Reason, ...]],
        shortfall: Callable[[], Shortfall | None],
        minimum_bytes: Callable[[], Mapping[DeviceKey, int | None]],
        settings: Callable[[], Mapping[str, Setting]],
        provenance: Callable[[], Mapping[str, str]],
        demands: Callable[[], Demands | None] = lambda: None,
        predicted_peaks: Callable[[], PredictedPeaks] = dict,
    ) -> None:
        self._source, self._names, self._block_bytes = source, names, block_bytes
        self._reasons, self._shortfall = reasons, shortfall
        self._minimum_bytes, self._settings, self._provenance = minimum_bytes, settings, provenance
        self._demands, self._predicted_peaks = demands, predicted_peaks

    @cached_property
    def source(self) -> Source:
        """What was planned."""
        return self._source()

    @cached_property
    def names(self) -> KnownNames:
        """Every name of the model's modules and tensors."""
        return self._names()

    @cached_property
    def block_bytes(self) -> Mapping[str, int]:
        """By block, its bytes, in execution order."""
        return MappingProxyType(dict(self._block_bytes()))

    @cached_property
    def reasons(self) -> tuple[Reason, ...]:
        """Every decision, in execution order."""
        return self._reasons()

    @cached_property
    def shortfall(self) -> Shortfall | None:
        """What would keep everything on the accelerators; None where it is there."""
        return self._shortfall()

    @cached_property
    def minimum_bytes(self) -> Mapping[DeviceKey, int | None]:
        """By idle device, the least budget that would give it weights."""
        return MappingProxyType(dict(self._minimum_bytes()))

    @cached_property
    def settings(self) -> Mapping[str, Setting]:
        """By path, the value of a setting and its rank."""
        return MappingProxyType(dict(self._settings()))

    @cached_property
    def provenance(self) -> Mapping[str, str]:
        """By path, where a setting comes from."""
        return MappingProxyType(dict(self._provenance()))

    @cached_property
    def demands(self) -> Demands | None:
        """What the blocks need while they run; None without a workload."""
        return self._demands()

    @cached_property
    def predicted_peaks(self) -> PredictedPeaks:
        """By phase and device, the most bytes at one time; empty without a workload."""
        return MappingProxyType(
            {phase: MappingProxyType(dict(peaks)) for phase, peaks in self._predicted_peaks().items()}
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanParts:
    """All parts of a plan; see :class:`planner.plans.plan.Plan`, which says more about them."""

    devices: tuple[DevicePlan, ...]
    device_map: Own[DeviceMap] = Own()  # noqa: RUF009 - a descriptor, of which one is enough
    execution_map: Own[dict[str, DeviceKey]] = Own()  # noqa: RUF009
    offloaded_bytes: Mapping[str, int]
    certificate: Certificate
    account: Account
    timing: Timing | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "offloaded_bytes", MappingProxyType(dict(self.offloaded_bytes)))
