"""A machine's parts as JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from planner.config.document import without_repetition
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.machine_reader import MachineReader
from planner.devices.rate import Rate
from planner.errors import InvalidInputError
from planner.spelling import shown

__all__ = ["Parts", "parts_of_data", "parts_of_text", "text_of_parts"]

Parts = tuple[tuple[MachineDevice, ...], tuple[Link, ...]]

_SCHEMA: Final = "planner.machine"
_VERSION: Final = 1
_TOP: Final = ("schema", "version", "devices", "links")


def text_of_parts(devices: Iterable[MachineDevice], links: Iterable[Link]) -> str:
    """Parts as JSON, in the order that they have."""
    data = {
        "schema": _SCHEMA,
        "version": _VERSION,
        "devices": [_device_data(device) for device in devices],
        "links": [_link_data(link) for link in links],
    }
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def parts_of_text(text: str) -> Parts:
    """What :func:`text_of_parts` wrote, or somebody by hand. Raises InvalidInputError. Fields: ``problems``."""
    try:
        data = json.loads(text, object_pairs_hook=without_repetition)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInputError(f"not a machine: {error}") from error
    return parts_of_data(data)


def parts_of_data(data: object) -> Parts:
    """The same of plain data. Raises InvalidInputError. Fields: ``problems``."""
    if not isinstance(data, Mapping) or data.get("schema") != _SCHEMA:
        raise InvalidInputError(f"not a machine: the schema is not {_SCHEMA!r}")
    version = data.get("version")
    if type(version) is not int or version != _VERSION:
        raise InvalidInputError(f"machine of version {shown(version)}; this planner reads version {_VERSION}")
    reader = MachineReader()
    reader.keys("", data, _TOP)
    devices = [reader.device(f"devices[{at}]", row) for at, row in enumerate(reader.rows("devices", data))]
    links = [reader.link(f"links[{at}]", row) for at, row in enumerate(reader.rows("links", data))]
    reader.finish()
    return (
        tuple(device for device in devices if device is not None),
        tuple(link for link in links if link is not None),
    )


def _device_data(device: MachineDevice) -> dict[str, Any]:
    data: dict[str, Any] = {"id": device.id, "kind": device.kind}
    for key, value in (("name", device.name), ("node", device.node), ("memory_bytes", device.memory_bytes)):
        if value not in ("", None):
            data[key] = value
    if device.memory_bytes_per_s is not None:
        data["memory_bytes_per_s"] = _rate_data(device.memory_bytes_per_s)
    if device.flops_per_s:
        data["flops_per_s"] = {dtype: _rate_data(rate) for dtype, rate in sorted(device.flops_per_s.items())}
    if device.weights_bytes_per_s:
        data["weights_bytes_per_s"] = {
            dtype: {str(tokens): _rate_data(rate) for tokens, rate in sorted(rates.items())}
            for dtype, rates in sorted(device.weights_bytes_per_s.items())
        }
    if device.launch_ps is not None:
        data["launch_ps"] = _rate_data(device.launch_ps)
    return data


def _link_data(link: Link) -> dict[str, Any]:
    data: dict[str, Any] = {"from": link.source, "to": link.to, "pinned": link.is_pinned}
    data["bytes_per_s"] = _rate_data(link.bytes_per_s)
    if link.latency_ps is not None:
        data["latency_ps"] = _rate_data(link.latency_ps)
    return data


def _rate_data(rate: Rate) -> int | dict[str, Any]:
    if rate == Rate.of_user(rate.value):
        return rate.value
    data: dict[str, Any] = {"value": rate.value, "origin": rate.origin, "low": rate.low, "high": rate.high}
    if rate.source:
        data["source"] = rate.source
    return data
