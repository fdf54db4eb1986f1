"""Reads a machine from plain data: what is there, and everything that is wrong with the rest."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, Final, TypeGuard

from planner.config.problem import suggestion
from planner.devices.keys import DeviceKey, canonical_device
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import MOST_RATE, Rate
from planner.errors import InvalidDevicesError, InvalidInputError
from planner.spelling import is_node, shown

_DEVICE: Final = tuple(each.name for each in fields(MachineDevice))
_LINK: Final = ("from", "to", "pinned", "bytes_per_s", "latency_ps")
_RATE: Final = tuple(each.name for each in fields(Rate))
_ORIGINS: Final = ("measured", "table", "user")
_KIND: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ELEMENT_TYPE: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_TOKENS: Final = re.compile(r"[1-9][0-9]{0,15}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_MOST_BYTES: Final = 2**62
_MOST_PROBLEMS: Final = 20


class MachineReader:
    """Reads what is there and keeps what is wrong with the rest."""

    def __init__(self) -> None:
        self._problems: list[str] = []

    def finish(self) -> None:
        """Raises InvalidInputError for what was found wrong."""
        if not self._problems:
            return
        shown_ones = self._problems[:_MOST_PROBLEMS]
        more = len(self._problems) - len(shown_ones)
        lines = [*shown_ones, *([f"and {more} more"] if more else [])]
        raise InvalidInputError("not a machine: " + "; ".join(lines), problems=tuple(self._problems))

    def keys(self, place: str, row: Mapping[Any, Any], known: Collection[str]) -> None:
        for key in row:
            if key not in known:
                self._say(place, f"unknown key {shown(key)}{suggestion(key, known)}")

    def rows(self, key: str, data: Mapping[Any, Any]) -> list[Any]:
        rows = data.get(key, [])
        if not isinstance(rows, list | tuple):
            self._say(key, f"expected a list, got {shown(rows)}")
            return []
        return list(rows)

    def device(self, place: str, row: object) -> MachineDevice | None:
        if not self._is_object(row, place):
            return None
        self.keys(place, row, _DEVICE)
        key = self._key(f"{place}.id", row.get("id"))
        if key == "disk":
            self._say(f"{place}.id", "the disk is no device of a machine; say a link from 'disk'")
        kind = self._word(f"{place}.kind", row.get("kind"))
        flops = self._by_type(f"{place}.flops_per_s", row.get("flops_per_s"))
        weights = self._by_type(f"{place}.weights_bytes_per_s", row.get("weights_bytes_per_s"))
        memory_bytes_per_s = self._rate(f"{place}.memory_bytes_per_s", row.get("memory_bytes_per_s"))
        launch_ps = self._rate(f"{place}.launch_ps", row.get("launch_ps"))
        memory_bytes = self._bytes(f"{place}.memory_bytes", row.get("memory_bytes"))
        name = self._text(f"{place}.name", row.get("name", ""))
        node = row.get("node", "")
        if node != "" and not is_node(node):
            self._say(f"{place}.node", f"expected letters, digits, '_', '.' and '-', got {shown(node)}")
        by_type = {
            dtype: rate
            for dtype, row in flops.items()
            if (rate := self._rate(f"{place}.flops_per_s.{dtype}", row)) is not None
        }
        by_tokens = {
            dtype: self._by_tokens(f"{place}.weights_bytes_per_s.{dtype}", row)
            for dtype, row in weights.items()
        }
        if self._problems or key is None or kind is None:
            return None
        return MachineDevice(
            id=key,
            kind=kind,
            name=name,
            node=node,
            memory_bytes=memory_bytes,
            memory_bytes_per_s=memory_bytes_per_s,
            flops_per_s=by_type,
            weights_bytes_per_s=by_tokens,
            launch_ps=launch_ps,
        )

    def link(self, place: str, row: object) -> Link | None:
        if not self._is_object(row, place):
            return None
        self.keys(place, row, _LINK)
        source = self._key(f"{place}.from", row.get("from"), has_node=True)
        to = self._key(f"{place}.to", row.get("to"), has_node=True)
        is_pinned = row.get("pinned", True)
        if type(is_pinned) is not bool:
            self._say(f"{place}.pinned", f"expected true or false, got {shown(is_pinned)}")
        rate = self._rate(f"{place}.bytes_per_s", row.get("bytes_per_s"))
        if rate is None and row.get("bytes_per_s") is None:
            self._say(f"{place}.bytes_per_s", "a link needs a rate")
        latency_ps = self._rate(f"{place}.latency_ps", row.get("latency_ps"))
        if self._problems or source is None or to is None or rate is None:
            return None
        return Link(source=source, to=to, is_pinned=is_pinned, bytes_per_s=rate, latency_ps=latency_ps)

    def _say(self, place: str, what: str) -> None:
        self._problems.append(f"{place}: {what}" if place else what)

    def _is_object(self, row: object, place: str) -> TypeGuard[Mapping[Any, Any]]:
        if isinstance(row, Mapping):
            return True
        self._say(place, f"expected an object, got {shown(row)}")
        return False

    def _key(self, place: str, value: object, *, has_node: bool = False) -> DeviceKey | None:
        node, rest = None, value
        if has_node and isinstance(value, str) and "/" in value:
            node, _, rest = value.partition("/")
            if not is_node(node):
                self._say(place, f"expected a node and a device, such as 'a/0', got {shown(value)}")
                return None
        try:
            device = canonical_device(rest)
        except InvalidDevicesError as error:
            self._say(place, error.message)
            return None
        return device if node is None else f"{node}/{device}"

    def _word(self, place: str, value: object) -> str | None:
        if isinstance(value, str) and _KIND.fullmatch(value):
            return value
        self._say(place, f"expected a kind of device such as 'cuda' or 'cpu', got {shown(value)}")
        return None

    def _text(self, place: str, value: object) -> str:
        if isinstance(value, str) and not _SURROGATE.search(value):
            return value
        self._say(place, f"expected a text that can be written to a file, got {shown(value)}")
        return ""

    def _by_type(self, place: str, row: object) -> Mapping[str, Any]:
        if row is None or not self._is_object(row, place):
            return {}
        for key in row:
            if not (isinstance(key, str) and _ELEMENT_TYPE.fullmatch(key)):
                self._say(place, f"expected element types such as 'bfloat16', got {shown(key)}")
        return {key: value for key, value in row.items() if isinstance(key, str)}

    def _by_tokens(self, place: str, row: object) -> Mapping[int, Rate]:
        if not self._is_object(row, place):
            return {}
        found: dict[int, Rate] = {}
        for tokens, value in row.items():
            if not _TOKENS.fullmatch(str(tokens)):
                self._say(place, f"expected a number of tokens of at least 1, got {shown(tokens)}")
                continue
            rate = self._rate(f"{place}.{tokens}", value)
            if rate is not None:
                found[int(tokens)] = rate
        return dict(sorted(found.items()))

    def _bytes(self, place: str, value: object) -> int | None:
        if value is None or (type(value) is int and 0 <= value <= _MOST_BYTES):
            return value if isinstance(value, int) else None
        self._say(place, f"expected a number of bytes, got {shown(value)}")
        return None

    def _rate(self, place: str, value: object) -> Rate | None:
        """A number with its origin, or a bare one; None where there is none, or where it is wrong."""
        if value is None:
            return None
        if not isinstance(value, Mapping):
            number = self._amount(place, value)
            return None if number is None else Rate.of_user(number)
        before = len(self._problems)
        self.keys(place, value, _RATE)
        origin, source = value.get("origin", "user"), self._text(f"{place}.source", value.get("source", ""))
        if origin not in _ORIGINS:
            self._say(f"{place}.origin", f"expected one of {', '.join(_ORIGINS)}, got {shown(origin)}")
        number = self._amount(f"{place}.value", value.get("value"))
        low = self._amount(f"{place}.low", value.get("low", number))
        high = self._amount(f"{place}.high", value.get("high", number))
        if len(self._problems) > before or number is None or low is None or high is None:
            return None
        if not low <= number <= high:
            self._say(place, f"value {number} is not within low {low} and high {high}")
            return None
        return Rate(value=number, origin=origin, low=low, high=high, source=source)

    def _amount(self, place: str, value: object) -> int | None:
        # Files that other programs write may have 3.35e12 for a whole number.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int and 1 <= value <= MOST_RATE:
            return value
        self._say(place, f"expected a whole number from 1 to 10**16, got {shown(value)}")
        return None
