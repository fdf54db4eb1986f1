"""A plan as one line of JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any, TypeVar

from planner.devices.keys import DeviceKey, canonical_device
from planner.errors import InvalidInputError
from planner.plans.device_map import DeviceMap
from planner.plans.parts import (
    Account,
    Certificate,
    DevicePlan,
    PlanParts,
    Reason,
    Setting,
    Shortfall,
    Source,
)

_SCHEMA = "planner.plan"
_VERSION = 1

T = TypeVar("T")


def write_json(plan: PlanParts, *, provenance: bool) -> str:
    """One line of JSON with sorted keys."""
    account = plan.account
    data: dict[str, Any] = {"schema": _SCHEMA, "version": _VERSION}
    data["source"] = _source_data(account.source)
    data["devices"] = [{**asdict(device), "id": str(device.id)} for device in plan.devices]
    data["device_map"] = [[name, device] for name, device in plan.device_map.items()]
    data["execution_map"] = [[name, device] for name, device in plan.execution_map.items()]
    data["offloaded_bytes"] = dict(plan.offloaded_bytes)
    data["certificate"] = asdict(plan.certificate)
    data["block_bytes"] = [[name, size] for name, size in account.block_bytes.items()]
    data["reasons"] = [asdict(reason) for reason in account.reasons]
    data["shortfall"] = None if account.shortfall is None else _shortfall_data(account.shortfall)
    if account.minimum_bytes:
        data["minimum_bytes"] = {str(key): size for key, size in account.minimum_bytes.items()}
    data["settings"] = {path: asdict(setting) for path, setting in account.settings.items()}
    if provenance:
        data["provenance"] = dict(account.provenance)
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def read_json(text: str) -> PlanParts:
    """The parts that :func:`write_json` wrote.

    Raises:
        InvalidInputError: not JSON, not a plan, or of a version this planner does not know.
    """
    try:
        data = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInputError(f"not a plan: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != _SCHEMA:
        raise InvalidInputError(f"not a plan: the schema is not {_SCHEMA!r}")
    if type(data.get("version")) is not int or data["version"] != _VERSION:
        raise InvalidInputError(
            f"plan of version {data.get('version')!r}; this planner reads version {_VERSION}"
        )
    try:
        return _parts(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInputError(f"not a plan: {type(error).__name__}: {error}") from error


def _shortfall_data(shortfall: Shortfall) -> dict[str, Any]:
    return {
        "name": shortfall.name,
        "more_bytes": {str(key): size for key, size in shortfall.more_bytes.items()},
    }


def _parts(data: dict[str, Any]) -> PlanParts:
    shortfall = _read_shortfall(data["shortfall"])
    devices = tuple(_exact(DevicePlan, {**row, "id": canonical_device(row["id"])}) for row in data["devices"])
    device_map, execution_map = _pairs(data["device_map"]), _pairs(data["execution_map"])
    offloaded_bytes = {tier: _count(data["offloaded_bytes"][tier]) for tier in ("cpu", "disk")}
    certificate = _exact(Certificate, data["certificate"])
    source = _read_source(data["source"])
    block_bytes = {str(name): _count(size) for name, size in data.get("block_bytes", [])}
    reasons = tuple(_exact(Reason, row) for row in data["reasons"])
    minimum_bytes = {
        canonical_device(key): None if size is None else _count(size)
        for key, size in data.get("minimum_bytes", {}).items()
    }
    settings = {path: _exact(Setting, row) for path, row in data["settings"].items()}
    provenance = {path: _text(origin) for path, origin in data.get("provenance", {}).items()}
    return PlanParts(
        devices=devices,
        device_map=DeviceMap(device_map, execution_map),
        execution_map=execution_map,
        offloaded_bytes=offloaded_bytes,
        certificate=certificate,
        account=Account(
            source=lambda: source,
            block_bytes=lambda: block_bytes,
            reasons=lambda: reasons,
            shortfall=lambda: shortfall,
            minimum_bytes=lambda: minimum_bytes,
            settings=lambda: settings,
            provenance=lambda: provenance,
        ),
    )


def _read_shortfall(row: Any) -> Shortfall | None:
    if row is None:
        return None
    more_bytes = {canonical_device(key): _count(size) for key, size in row["more_bytes"].items()}
    return _exact(Shortfall, {**row, "more_bytes": more_bytes})


# The declared types that JSON could get wrong; a bool is no number.
_TYPES: Mapping[object, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "DeviceKey": (int, str),
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
}
# Closed sets of words; any text is read, since a rule or stage may be newer than this reader.
_WORDS = ("DeviceKind", "RankName", "ReasonRule", "Stage")


def _exact(cls: type[T], row: Mapping[str, Any]) -> T:
    """An instance with fields of exactly the types declared. Raises TypeError."""
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in row and field.default is not MISSING:
            continue  # what older planners did not write
        declared = "str" if field.type in _WORDS else field.type
        allowed = _TYPES.get(declared)
        if allowed and type(row[field.name]) not in allowed:
            raise TypeError(f"{field.name} must be {declared}, got {str(row[field.name])[:80]!r}")
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
