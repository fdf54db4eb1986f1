"""The plan: where everything goes, in bytes and reasons; frozen, comparable, and the same in JSON everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from planner.devices.keys import DeviceKey, canonical_device
from planner.errors import InvalidInputError
from planner.plans.diff import PlanDiff, UsageDifference, moved_names
from planner.plans.notebook import snippet
from planner.units import format_bytes

__all__ = [
    "BEFORE_QUANTIZATION",
    "Account",
    "Certificate",
    "DevicePlan",
    "DeviceUsage",
    "Plan",
    "Reason",
    "Setting",
    "Shortfall",
    "Source",
    "doubts",
]

SCHEMA = "planner.plan"
VERSION = 1

T = TypeVar("T")

BEFORE_QUANTIZATION = "sizes are those before quantization, which only a checkpoint's files tell"
"""The note that puts every number of bytes in doubt: whoever shows bytes shows it, too."""


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
            "offloaded", "oversized", "no_room", "fused_experts".
        name: the module or tensor decided on.
        device: the device it was measured against.
        needed_bytes: what it needs there with all that is tied to it.
        available_bytes: what the device had left after the reservation, negative if the reservation alone is too much;
            None is without limit.
    """

    rule: str
    name: str
    device: DeviceKey
    needed_bytes: int
    available_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What was planned: a live "module", a "checkpoint" or a "config"; its digest, blocks and stored bytes; and what to know
    of its names and sizes."""

    kind: Literal["module", "checkpoint", "config"]
    fingerprint: str
    blocks: int
    total_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def doubts(self) -> tuple[str, ...]:
        """Notes that put every number of bytes in doubt."""
        return doubts(self.notes)


def doubts(notes: Iterable[str]) -> tuple[str, ...]:
    """Of notes, those that put every number of bytes in doubt."""
    return tuple(note for note in notes if note == BEFORE_QUANTIZATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """One device in a plan: ``budget = headroom + used + reserved + free``, in bytes; None is without limit.

    Args:
        id: its key.
        kind: "accelerator", "cpu" or "disk".
        pool: devices of one pool share their memory.
        origin: where the budget comes from.
    """

    id: DeviceKey
    kind: str
    pool: str | None
    budget_bytes: int | None
    headroom_bytes: int
    used_bytes: int
    reserved_bytes: int
    free_bytes: int | None
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """How good a plan is known to be.

    Args:
        proven: no plan offloads less.
        lower_bound_bytes: no plan offloads less than this.
        gap_bytes: what this plan offloads beyond it.
        returns: times that execution comes back to a device it had left; a unit counts once, at its first block.
        returns_lower_bound: no plan with as many bytes offloaded and on disk, and its first block on an accelerator if this
            plan has it there, returns less often.
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
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """What keeps something off the accelerators: the largest block concerned, and by device the extra bytes that alone
    would let everything stay there."""

    name: str
    more_bytes: Mapping[DeviceKey, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A resolved setting: its value as plain data, and who said it."""

    value: Any
    rank: str


class Account:
    """The story of a plan: source, reasons, shortfall, minimum bytes, settings, provenance; each made when it is first asked
    for.

    Args:
        parts: by name, the value or a function that makes it. Functions must be pure.
    """

    __slots__ = ("_made", "_parts")

    def __init__(self, **parts: Any) -> None:
        self._parts = parts
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            part = self._parts[name]
            made = part() if callable(part) else part
            self._made[name] = MappingProxyType(made) if isinstance(made, dict) else made
        return self._made[name]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Where a model goes, and why.

    Args:
        devices: bytes by device, in order of preference.
        device_map: names to devices: the fewest keys that cover every tensor, in execution order.
        execution_map: names to devices, for what runs elsewhere than it lies.
        offloaded_bytes: bytes by tier, "cpu" and "disk"; where there is no accelerator, the cpu does not count.
        certificate: how good it is known to be.
        account: source, reasons, shortfall, minimum bytes, settings and provenance, which the properties of these names read.

    Guarantee: immutable; picklable; equal problems give equal plans and the same bytes of canonical JSON.
    """

    devices: tuple[DevicePlan, ...]
    device_map: Mapping[str, DeviceKey]
    execution_map: Mapping[str, DeviceKey]
    offloaded_bytes: Mapping[str, int]
    certificate: Certificate
    account: Account

    def __post_init__(self) -> None:
        for name in ("device_map", "execution_map", "offloaded_bytes"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def source(self) -> Source:
        """What was planned."""
        source: Source = self.account["source"]
        return source

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Every decision, in execution order."""
        reasons: tuple[Reason, ...] = self.account["reasons"]
        return reasons

    @property
    def shortfall(self) -> Shortfall | None:
        """What would keep everything on the accelerators; None where it is there."""
        shortfall: Shortfall | None = self.account["shortfall"]
        return shortfall

    @property
    def minimum_bytes(self) -> Mapping[DeviceKey, int | None]:
        """The devices that should hold weights and got none, and with accelerate's strategies the least budget of that
        device, the others as they are, with which it gets some; None where there is none, or none is known.

        With ``auto`` these are the accelerators that hold nothing; otherwise those that a block was too large for, with
        the cpu among them.
        """
        minimum_bytes: Mapping[DeviceKey, int | None] = self.account["minimum_bytes"]
        return minimum_bytes

    @property
    def settings(self) -> Mapping[str, Setting]:
        """By path, the value of a setting and who said it."""
        settings: Mapping[str, Setting] = self.account["settings"]
        return settings

    @property
    def provenance(self) -> Mapping[str, str]:
        """By path, where a setting was said; takes no part in equality, hash and canonical JSON."""
        provenance: Mapping[str, str] = self.account["provenance"]
        return provenance

    def to_json(self, *, provenance: bool = True) -> str:
        """One line of JSON with sorted keys.

        Args:
            provenance: include where settings were said; without it, equal plans have equal text.
        """
        data: dict[str, Any] = {"schema": SCHEMA, "version": VERSION}
        data["source"] = _source_data(self.source)
        data["devices"] = [{**asdict(device), "id": str(device.id)} for device in self.devices]
        data["device_map"] = [[name, device] for name, device in self.device_map.items()]
        data["execution_map"] = [[name, device] for name, device in self.execution_map.items()]
        data["offloaded_bytes"] = dict(self.offloaded_bytes)
        data["certificate"] = asdict(self.certificate)
        data["reasons"] = [asdict(reason) for reason in self.reasons]
        data["shortfall"] = None if self.shortfall is None else _shortfall_data(self.shortfall)
        if self.minimum_bytes:
            data["minimum_bytes"] = {str(key): size for key, size in self.minimum_bytes.items()}
        data["settings"] = {path: asdict(setting) for path, setting in self.settings.items()}
        if provenance:
            data["provenance"] = dict(self.provenance)
        return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            InvalidInputError: not JSON, not a plan, or of a version this planner does not know.
        """
        try:
            data = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidInputError(f"not a plan: {error}") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise InvalidInputError(f"not a plan: the schema is not {SCHEMA!r}")
        if type(data.get("version")) is not int or data["version"] != VERSION:
            raise InvalidInputError(
                f"plan of version {data.get('version')!r}; this planner reads version {VERSION}"
            )
        try:
            return cls(**_parts(data))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError(f"not a plan: {type(error).__name__}: {error}") from error

    def diff(self, other: Plan) -> PlanDiff:
        """What the other plan places differently; ``str`` of it says so in words.

        Example:
            >>> import torch
            >>> from planner import plan
            >>> model = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(4)))
            >>> print(plan(model, max_memory={0: 800, 1: 800}).diff(plan(model, max_memory={0: 400, 1: 1200})))
            1: 0 → 1
            0: 800 B → 400 B used
            1: 800 B → 1.17 KiB used
        """
        if not isinstance(other, Plan):
            raise InvalidInputError(f"a plan differs from another plan; got {type(other).__name__}")
        used = [{device.id: device.used_bytes for device in each.devices} for each in (self, other)]
        pairs = ((device, used[0].get(device, 0), used[1].get(device, 0)) for device in used[0] | used[1])
        return PlanDiff(
            moved=moved_names(self.device_map, other.device_map),
            usage=tuple(UsageDifference(*each) for each in pairs if each[1] != each[2]),
        )

    def summary(self) -> str:
        """The plan in words: a line for each device, and one for what is offloaded."""
        lines = [f"{self.source.blocks} blocks, {format_bytes(self.source.total_bytes)}"]
        for device in self.devices:
            parts = [f"{format_bytes(device.used_bytes)} used"]
            if device.reserved_bytes:
                parts.append(f"{format_bytes(device.reserved_bytes)} kept for streaming")
            if device.headroom_bytes:
                parts.append(f"{format_bytes(device.headroom_bytes)} headroom")
            if device.free_bytes is not None:
                parts.append(f"{format_bytes(device.free_bytes)} free")
            lines.append(f"  {device.id}: {', '.join(parts)}")
        offloaded = sum(self.offloaded_bytes.values())
        proof = "proven least" if self.certificate.proven else "not proven least"
        lines.append(
            f"offloaded: {format_bytes(offloaded)} ({proof})" if offloaded else "nothing is offloaded"
        )
        return "\n".join((*lines, *self.source.doubts))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_json(provenance=False) == other.to_json(provenance=False)

    def __hash__(self) -> int:
        return hash(self.to_json(provenance=False))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Plan.from_json, (self.to_json(),))

    def __repr__(self) -> str:
        parts = ", ".join(f"{device.id}: {device.used_bytes}" for device in self.devices)
        return f"Plan({self.source.blocks} blocks, used bytes {{{parts}}}, {self.certificate.stage})"

    def _repr_html_(self) -> str:
        """What a notebook shows: bytes by device as bars and numbers."""
        return snippet(
            self.devices,
            blocks=self.source.blocks,
            total_bytes=self.source.total_bytes,
            offloaded_bytes=self.offloaded_bytes,
            is_proven=self.certificate.proven,
        )


def _shortfall_data(shortfall: Shortfall) -> dict[str, Any]:
    return {
        "name": shortfall.name,
        "more_bytes": {str(key): size for key, size in shortfall.more_bytes.items()},
    }


def _parts(data: dict[str, Any]) -> dict[str, Any]:
    shortfall = data["shortfall"]
    if shortfall is not None:
        more = {canonical_device(key): _count(size) for key, size in shortfall["more_bytes"].items()}
        shortfall = _exact(Shortfall, {**shortfall, "more_bytes": more})
    return {
        "devices": tuple(
            _exact(DevicePlan, {**row, "id": canonical_device(row["id"])}) for row in data["devices"]
        ),
        "device_map": _pairs(data["device_map"]),
        "execution_map": _pairs(data["execution_map"]),
        "offloaded_bytes": {tier: _count(data["offloaded_bytes"][tier]) for tier in ("cpu", "disk")},
        "certificate": _exact(Certificate, data["certificate"]),
        "account": Account(
            source=_read_source(data["source"]),
            reasons=tuple(_exact(Reason, row) for row in data["reasons"]),
            shortfall=shortfall,
            minimum_bytes={
                canonical_device(key): None if size is None else _count(size)
                for key, size in data.get("minimum_bytes", {}).items()
            },
            settings={path: _exact(Setting, row) for path, row in data["settings"].items()},
            provenance={path: _text(origin) for path, origin in data.get("provenance", {}).items()},
        ),
    }


# The declared types that JSON could get wrong; a bool is no number.
_TYPES: Mapping[object, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "DeviceKey": (int, str),
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
}


def _exact(cls: type[T], row: Mapping[str, Any]) -> T:
    """An instance with fields of exactly the types declared. Raises TypeError."""
    for field in fields(cls):  # type: ignore[arg-type]
        allowed = _TYPES.get(field.type)
        if allowed and type(row[field.name]) not in allowed:
            raise TypeError(f"{field.name} must be {field.type}, got {str(row[field.name])[:80]!r}")
    return cls(**row)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"expected a text, got {str(value)[:80]!r}")
    return value


def _source_data(source: Source) -> dict[str, Any]:
    """A source as plain data; notes only where there are any, which no live model has."""
    data = asdict(source)
    if not source.notes:
        del data["notes"]
    return data


def _read_source(row: dict[str, Any]) -> Source:
    notes = row.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise TypeError("notes must be a list of strings")
    return _exact(Source, {**row, "notes": tuple(notes)})


def _pairs(rows: Any) -> dict[str, DeviceKey]:
    """A device map from its rows. Raises TypeError or ValueError for anything else."""
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 2 for row in rows):
        raise TypeError("a device map must be a list of [name, device]")
    return {str(name): canonical_device(device) for name, device in rows}


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"expected a number of bytes, got {value!r}")
    return value
