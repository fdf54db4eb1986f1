"""A plan as one line of JSON, and back; `docs/plan-file.md` says what the fields mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any, TypeVar

from planner.config.document import without_repetition
from planner.devices.keys import DeviceKey, ordered
from planner.devices.nodes import plan_device
from planner.errors import InvalidInputError
from planner.known_names import KnownNames
from planner.memory.demands import BlockDemand, Demands
from planner.names import device_of, is_within, listed
from planner.plans.device_map import DeviceMap
from planner.plans.parts import (
    Account,
    Certificate,
    DevicePlan,
    PlanParts,
    PredictedPeaks,
    Reason,
    Setting,
    Shortfall,
    Source,
)
from planner.plans.timing import OtherWay, TimedPiece, TimedStage, Timing
from planner.spelling import count_of, shown

_SCHEMA = "planner.plan"
_VERSION = 4
_READ_VERSIONS = (1, 2, 3, 4)
_MAPS = ("device_map", "execution_map", "block_bytes")
_IN_ORDER = (*_MAPS, "demands")
"""Objects whose keys stand in the order of execution; those of all others are sorted."""

T = TypeVar("T")


def write_json(plan: PlanParts, *, provenance: bool) -> str:
    """One line of JSON: sorted keys, but where order means something."""
    account = plan.account
    data: dict[str, Any] = {
        "schema": _SCHEMA,
        "version": _VERSION,
        "source": _source_data(account.source),
        "devices": [asdict(device) for device in plan.devices],
        "device_map": plan.device_map,
        "execution_map": plan.execution_map,
        "offloaded_bytes": dict(plan.offloaded_bytes),
        "certificate": asdict(plan.certificate),
        "block_bytes": dict(account.block_bytes),
        "names": account.names.plain(),
        "reasons": [asdict(reason) for reason in account.reasons],
        "shortfall": None if account.shortfall is None else _shortfall_data(account.shortfall),
        "settings": {path: asdict(setting) for path, setting in account.settings.items()},
    }
    if account.minimum_bytes:
        data["minimum_bytes"] = {str(key): size for key, size in account.minimum_bytes.items()}
    if account.demands is not None:
        data["demands"] = _demands_data(account.demands)
        data["predicted_peaks"] = {
            phase: {str(key): size for key, size in peaks.items()}
            for phase, peaks in account.predicted_peaks.items()
        }
    if plan.timing is not None:
        data["timing"] = asdict(plan.timing)
    if provenance:
        data["provenance"] = dict(account.provenance)
    parts = (
        f"{_text_of(key)}:{_text_of(value, key not in _IN_ORDER)}" for key, value in sorted(data.items())
    )
    return f"{{{','.join(parts)}}}"


def _text_of(value: Any, sort_keys: bool = False) -> str:
    return json.dumps(value, sort_keys=sort_keys, ensure_ascii=False, separators=(",", ":"))


def read_json(text: str) -> PlanParts:
    """The parts that :func:`write_json` wrote, or an older planner did.

    Raises:
        InvalidInputError: not JSON, not a plan, or of a version this planner does not know.
    """
    try:
        data = json.loads(text, object_pairs_hook=without_repetition)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInputError(f"not a plan: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != _SCHEMA:
        raise InvalidInputError(f"not a plan: the schema is not {_SCHEMA!r}")
    version = data.get("version")
    if type(version) is not int or version not in _READ_VERSIONS:
        raise InvalidInputError(
            f"plan of version {version!r}; this planner reads versions {listed(map(str, _READ_VERSIONS))}"
        )
    try:
        return _parts({**data, **_from_pairs(data)} if version == 1 else data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInputError(f"not a plan: {type(error).__name__}: {error}") from error


def _from_pairs(data: dict[str, Any]) -> dict[str, Any]:
    """What version 1 wrote as lists of pairs, as objects; it had no names. Raises TypeError or ValueError."""
    found: dict[str, Any] = {"names": []}
    for part in _MAPS:
        rows = data[part] if part != "block_bytes" else data.get(part, [])
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 2 for row in rows):
            raise TypeError(f"{part} must be a list of pairs")
        found[part] = {_text(name): value for name, value in rows}
    return found


def _shortfall_data(shortfall: Shortfall) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": shortfall.name,
        "more_bytes": {str(key): size for key, size in shortfall.more_bytes.items()},
    }
    if shortfall.smaller_formats:
        data["smaller_formats"] = dict(shortfall.smaller_formats)
    return data


def _demands_data(demands: Demands) -> dict[str, Any]:
    """Demands as plain data; numbers that are 0 are left out."""
    blocks = {
        name: {field: size for field, size in asdict(block).items() if size}
        for name, block in demands.blocks.items()
    }
    return {
        "blocks": blocks,
        "method": demands.method,
        "notes": list(demands.notes),
        "shared_bytes": demands.shared_bytes,
    }


def _read_demands(row: Any) -> Demands | None:
    if row is None:
        return None
    blocks = {
        _text(name): BlockDemand(**{field: _count(size) for field, size in sizes.items()})
        for name, sizes in row["blocks"].items()
    }
    return Demands(
        blocks=blocks,
        shared_bytes=_count(row["shared_bytes"]),
        method=row["method"],
        notes=tuple(map(_text, row["notes"])),
    )


def _read_peaks(rows: Any) -> PredictedPeaks:
    return {
        phase: {key: _count(size) for key, size in _by_device(peaks).items()} for phase, peaks in rows.items()
    }


def _parts(data: dict[str, Any]) -> PlanParts:
    shortfall = _read_shortfall(data["shortfall"])
    devices = tuple(
        _exact(DevicePlan, {**row, "id": plan_device(row["id"])}) for row in _rows(data["devices"])
    )
    if len({device.id for device in devices}) < len(devices):
        raise ValueError("a device stands twice in devices")
    device_map, execution_map = _map(data["device_map"]), _map(data["execution_map"])
    offloaded_bytes = {tier: _count(data["offloaded_bytes"][tier]) for tier in ("cpu", "disk")}
    certificate = _exact(Certificate, data["certificate"])
    source = _read_source(data["source"])
    names = KnownNames.read(data["names"])
    block_bytes = {name: _count(size) for name, size in data["block_bytes"].items()}
    reasons = tuple(
        _exact(Reason, {**row, "device": plan_device(row["device"])}) for row in _rows(data["reasons"])
    )
    least = _by_device(data.get("minimum_bytes", {}))
    in_order = [device.id for device in devices if device.id in least]
    minimum_bytes = {
        key: None if least[key] is None else _count(least[key]) for key in dict.fromkeys((*in_order, *least))
    }
    settings = {path: _exact(Setting, row) for path, row in data["settings"].items()}
    demands, peaks = _read_demands(data.get("demands")), _read_peaks(data.get("predicted_peaks", {}))
    provenance = {path: _text(origin) for path, origin in data.get("provenance", {}).items()}
    timing = _of_model(_read_timing(data.get("timing")), device_map)
    host_steps = {} if timing is None else timing.host_steps
    return PlanParts(
        devices=devices,
        device_map=DeviceMap(device_map, execution_map, host_steps),
        execution_map=execution_map,
        offloaded_bytes=offloaded_bytes,
        certificate=certificate,
        timing=timing,
        account=Account(
            source=lambda: source,
            names=lambda: names,
            block_bytes=lambda: block_bytes,
            reasons=lambda: reasons,
            shortfall=lambda: shortfall,
            minimum_bytes=lambda: minimum_bytes,
            settings=lambda: settings,
            provenance=lambda: provenance,
            demands=lambda: demands,
            predicted_peaks=lambda: peaks,
        ),
    )


def _read_timing(row: Any) -> Timing | None:
    if row is None:
        return None

    def with_device(cls: type[T], each: Mapping[str, Any]) -> T:
        return _exact(cls, {**each, "device": plan_device(each["device"])})

    stages = tuple(with_device(TimedStage, each) for each in _rows(row["stages"]))
    pieces = tuple(with_device(TimedPiece, _with_other(each)) for each in _rows(row["pieces"]))
    from_table = tuple(map(plan_device, _rows(row["from_table"])))
    names = {piece.name for piece in pieces}
    strange = [name for stage in stages for name in (stage.first, stage.last) if name not in names]
    if strange:
        raise ValueError(f"a stage of timing names {shown(strange[0])}, which is no piece of it")
    if len(names) < len(pieces):
        raise ValueError("a piece stands twice in timing")
    for piece in pieces:
        if piece.host_up_to_tokens is not None and piece.way != "beside":
            raise ValueError(
                f"timing says in which steps the host runs {shown(piece.name)}, which is not beside its stage"
            )
        if piece.other is not None and not (piece.other.per_s and piece.other.even_per_s):
            raise ValueError(f"timing says a rate of 0 for {shown(piece.name)}")
    return _exact(Timing, {**row, "stages": stages, "pieces": pieces, "from_table": from_table})


def _of_model(timing: Timing | None, device_map: Mapping[str, DeviceKey]) -> Timing | None:
    """The timing, of pieces that the map speaks for. Raises ValueError."""
    for piece in () if timing is None else timing.pieces:
        if device_of(piece.name, device_map) is None and not any(
            is_within(key, piece.name) for key in device_map
        ):
            raise ValueError(f"timing names {shown(piece.name)}, of which the device map says nothing")
    return timing


def _with_other(row: Mapping[str, Any]) -> Mapping[str, Any]:
    other = row.get("other")
    return {**row, "other": None if other is None else _exact(OtherWay, other)}


def _read_shortfall(row: Any) -> Shortfall | None:
    if row is None:
        return None
    # Sorted as text in the file, and told in the order that a plan has which was just made.
    more_bytes = ordered({key: _count(size) for key, size in _by_device(row["more_bytes"]).items()})
    formats = {_text(name): _count(size) for name, size in row.get("smaller_formats", {}).items()}
    smaller_formats = dict(sorted(formats.items(), key=lambda item: -item[1]))
    return _exact(Shortfall, {**row, "more_bytes": more_bytes, "smaller_formats": smaller_formats})


# The declared types that JSON could get wrong; a bool is no number.
_TYPES: Mapping[object, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "DeviceKey": (int, str),
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
}
# What may be too much already; all other numbers are amounts.
_BELOW_ZERO = ((Reason, "available_bytes"),)
# Closed sets of words; any text is read, since a rule or stage may be newer than this reader.
_WORDS = ("SourceKind", "DeviceKind", "RankName", "ReasonRule", "Stage", "Objective", "PieceWay", "RateKind")


def _exact(cls: type[T], row: Mapping[str, Any]) -> T:
    """An instance with fields of exactly the types declared. Raises TypeError."""
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in row and field.default is not MISSING:
            continue  # what older planners did not write
        declared = "str" if field.type in _WORDS else field.type
        allowed = _TYPES.get(declared)
        value = row[field.name]
        if allowed and type(value) not in allowed:
            raise TypeError(f"{field.name} must be {declared}, got {str(value)[:80]!r}")
        if declared in ("int", "int | None") and value is not None:
            _require_amount(field.name, abs(value) if (cls, field.name) in _BELOW_ZERO else value)
    return cls(**row)


def _require_amount(what: str, value: int) -> None:
    if count_of(value) is None:
        raise ValueError(f"{what} must be an amount, got {shown(value)}")


def _rows(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {str(value)[:80]!r}")
    return value


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


def _map(rows: Any) -> dict[str, DeviceKey]:
    """A device map. Raises TypeError or ValueError for anything else."""
    if not isinstance(rows, dict):
        raise TypeError("a device map must be an object of names and devices")
    return {name: plan_device(device) for name, device in rows.items()}


def _count(value: Any) -> int:
    if type(value) is not int or count_of(value) is None:
        raise TypeError(f"expected a number of bytes, got {shown(value)}")
    return value


def _by_device(rows: Mapping[str, Any]) -> dict[DeviceKey, Any]:
    """What an object says by device. Raises TypeError or ValueError for anything else, and where a device stands there twice."""
    found = {plan_device(key): value for key, value in rows.items()}
    if len(found) < len(rows):
        raise ValueError("a device stands twice in one object")
    return found
