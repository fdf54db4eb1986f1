"""A machine as data: its devices and their rates, the links between them, and how bytes get from one to another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import pairwise, permutations
from pathlib import Path
from typing import Final

from planner.devices.keys import DeviceKey
from planner.devices.machine_file import parts_of_data, parts_of_text, text_of_parts
from planner.devices.machine_parts import Link, MachineDevice, Route
from planner.devices.rate import Rate
from planner.errors import InvalidDevicesError, InvalidInputError
from planner.names import listed
from planner.spelling import is_node, shown

__all__ = ["MOST_DEVICES", "Machine"]

MOST_DEVICES: Final = 64

_PAGEABLE_SHARE: Final = 0.4
"""Of a pinned copy's rate what a pageable one reaches, which goes through a pinned buffer of the driver and one core's copying."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices, links, and what is known of each.

    Args:
        devices: with keys that differ, at most 64.
        links: between these, and from and to "disk".

    Raises:
        InvalidDevicesError: no device, too many, or two with one key. Fields: ``device``.
        InvalidInputError: a link to a device that is not there, or twice the same.

    Example:
        >>> from planner.devices.machine_parts import Link, MachineDevice
        >>> from planner.devices.rate import Rate
        >>> card = MachineDevice(id=0, kind="cuda", memory_bytes_per_s=Rate.of_user(10**12))
        >>> machine = Machine(devices=(card, MachineDevice(id="cpu", kind="cpu")),
        ...     links=(Link(source="cpu", to=0, bytes_per_s=Rate.of_user(10**10)),))
        >>> machine.route("cpu", 0).copy_ps(10**10) / 10**12
        1.0
        >>> machine.route(0, "cpu").rule
        'as fast as the other way'
    """

    devices: tuple[MachineDevice, ...]
    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        if not self.devices:
            raise InvalidDevicesError("a machine has at least one device", device=None)
        keys = [device.key for device in self.devices]
        if len(keys) > MOST_DEVICES:
            raise InvalidDevicesError(
                f"{len(keys)} devices; a machine has at most {MOST_DEVICES}: leave some out",
                device=keys[MOST_DEVICES],
            )
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise InvalidDevicesError(f"device {twice} stands twice in a machine", device=twice)
        seen = set()
        for link in self.links:
            for end in (link.source, link.to):
                if end not in keys and end != "disk":
                    raise InvalidInputError(
                        f"a link from {link.source} to {link.to}: there is no device {end}; there are {listed(map(str, keys))}"
                    )
            ends = (link.source, link.to, link.is_pinned)
            if link.source == link.to or ends in seen:
                what = "to itself" if link.source == link.to else "twice"
                raise InvalidInputError(f"a link from {link.source} to {link.to} {what}")
            seen.add(ends)

    @classmethod
    def from_json(cls, text: str) -> Machine:
        """A machine from JSON.

        Args:
            text: of :meth:`to_json`, or written by hand; a bare number is the user's.

        Raises:
            InvalidInputError: no JSON, another schema, or a version that is not known; else every unknown key and every number that
                is none, all at once. Fields: ``problems``. Also as the class.

        Example:
            >>> Machine.from_json('{"schema": "planner.machine", "version": 1, "devices": [{"id": 0, "kind": "cuda", '
            ...     '"memory_bytes_per_s": 3350000000000}]}').device(0).memory_bytes_per_s.origin
            'user'
        """
        devices, links = parts_of_text(text)
        return cls(devices=devices, links=links)

    @classmethod
    def from_data(cls, data: object) -> Machine:
        """A machine from what JSON would be read as. Raises: as :meth:`from_json`."""
        devices, links = parts_of_data(data)
        return cls(devices=devices, links=links)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Machine:
        """A machine from a file. Raises InvalidInputError: it cannot be read, or as :meth:`from_json`; the file is named."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")  # some editors begin with a mark
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"no machine can be read from {os.fspath(path)}: {error}") from error
        try:
            return cls.from_json(text)
        except InvalidInputError as error:
            raise InvalidInputError(f"{os.fspath(path)}: {error.message}", **error.fields) from error

    @classmethod
    def of_nodes(cls, nodes: Mapping[str, Machine], *, between: Rate, latency: Rate | None = None) -> Machine:
        """Several computers as one machine, whose devices are called ``a/0``.

        Args:
            nodes: by the name of a computer, what is in it; each with its host.
            between: bytes in a second from the host of one to that of another, one way.
            latency: picoseconds of the shortest copy there.

        Raises:
            InvalidDevicesError: too many devices, or a computer without a host. Fields: ``device``.
            InvalidInputError: a computer that is several already, or a name that no budget can say.

        Example:
            >>> from planner.devices.rate import Rate
            >>> from planner.devices.table_machine import machine_of_cards
            >>> both = Machine.of_nodes({"a": machine_of_cards({0: "L4"}), "b": machine_of_cards({0: "L4"})},
            ...     between=Rate.of_user(10**10))
            >>> both.route("a/0", "b/0").rule
            'through a/cpu and b/cpu'
        """
        devices, links, hosts = list[MachineDevice](), list[Link](), list[DeviceKey]()
        for name, machine in nodes.items():
            if not is_node(name):
                raise InvalidInputError(
                    f"a computer's name is letters, digits, '_', '.' and '-', at most 64, and begins with a letter or digit: got {shown(name)}"
                )
            if any(device.node for device in machine.devices):
                raise InvalidInputError(f"{name} is several computers already")
            devices += [replace(device, node=name) for device in machine.devices]
            links += [
                replace(link, source=f"{name}/{link.source}", to=f"{name}/{link.to}")
                for link in machine.links
                if "disk" not in (link.source, link.to)
            ]
            host = next((device.id for device in machine.devices if device.kind == "cpu"), None)
            if host is None:
                raise InvalidDevicesError(
                    f"{name} has no host, through which others are reached", device=name
                )
            hosts.append(f"{name}/{host}")
        links += [
            Link(source=source, to=to, bytes_per_s=between, latency_ps=latency)
            for source, to in permutations(hosts, 2)
        ]
        return cls(devices=tuple(devices), links=tuple(links))

    def to_json(self) -> str:
        """JSON that people can read and edit, one device or link after the other.

        Guarantee: :meth:`from_json` gives an equal machine; equal machines give the same text.
        """
        return self._text

    @property
    def fingerprint(self) -> str:
        """What tells machines apart whose numbers differ, wherever these come from."""
        return self._fingerprint

    def __hash__(self) -> int:
        """Equal machines give the same text."""
        return hash(self._text)

    @cached_property
    def _fingerprint(self) -> str:
        return sha256(self._text.encode()).hexdigest()[:16]

    @cached_property
    def _text(self) -> str:
        return text_of_parts(self.devices, self.links)

    def device(self, key: DeviceKey) -> MachineDevice:
        """A device by its key. Raises InvalidDevicesError where it is not there. Fields: ``device``."""
        found = self._by_key.get(key)
        if found is None:
            raise InvalidDevicesError(
                f"the machine has no device {key}; it has {listed(map(str, self._by_key))}: "
                "planner probe --out machine.json measures the machine that you are on",
                device=key,
            )
        return found

    def route(self, source: DeviceKey, to: DeviceKey, *, is_pinned: bool = True) -> Route:
        """How bytes get from one device to another: by a link, else by rule.

        Args:
            source, to: keys; "disk" for the disk.
            is_pinned: of memory that the driver may read by itself.

        Raises:
            InvalidInputError: neither a link nor a rule tells. Fields: ``source``, ``to``.

        Guarantee: a link that is there counts before any rule.
        """
        if source == to:
            return Route(links=())
        direct = self._one_way(source, to, is_pinned)
        if direct is not None:
            return direct
        # Without peer access, and from the disk, bytes go through the memory of the host.
        hosts = [self._host_of(end) for end in (source, to)]
        stops = list(dict.fromkeys([source, *(host for host in hosts if host is not None), to]))
        ways = [self._one_way(*pair, is_pinned) for pair in pairwise(stops)]
        known = [way for way in ways if way is not None]
        if len(stops) < 3 or len(known) < len(ways):
            raise InvalidInputError(
                f"no rate from {source} to {to}: say a link with bytes_per_s in the machine, or measure it with "
                "planner probe --out machine.json",
                source=source,
                to=to,
            )
        via = " and ".join(str(stop) for stop in stops[1:-1])
        return Route(links=tuple(link for way in known for link in way.links), rule=f"through {via}")

    def _one_way(self, source: DeviceKey, to: DeviceKey, is_pinned: bool) -> Route | None:
        """A link that is there, or follows from the one of the other kind or way."""
        links = self._by_ends
        found = links.get((source, to, is_pinned))
        if found is not None:
            return Route(links=(found,))
        other_kind = links.get((source, to, not is_pinned))
        if other_kind is not None:
            # What is known to be slow may be faster pinned: nobody measured that.
            factor = 1.0 if is_pinned else _PAGEABLE_SHARE
            why = "as fast as pageable memory" if is_pinned else "pageable memory, by rule"
            return Route(links=(_changed(other_kind, source, to, is_pinned, factor, why),), rule=why)
        if "disk" in (source, to):
            return None  # disks do not write as they read
        back = links.get((to, source, is_pinned)) or links.get((to, source, not is_pinned))
        if back is None:
            return None
        factor = _PAGEABLE_SHARE if back.is_pinned and not is_pinned else 1.0
        why = "as fast as the other way"
        return Route(links=(_changed(back, source, to, is_pinned, factor, why),), rule=why)

    def _host_of(self, key: DeviceKey) -> DeviceKey | None:
        """The host whose memory a device's bytes pass."""
        if key == "disk":
            hosts = [device.key for device in self.devices if device.kind == "cpu"]
            return hosts[0] if len(hosts) == 1 else None
        node = self.device(key).node
        return next((each.key for each in self.devices if each.kind == "cpu" and each.node == node), None)

    @cached_property
    def _by_key(self) -> Mapping[DeviceKey, MachineDevice]:
        return {device.key: device for device in self.devices}

    @cached_property
    def _by_ends(self) -> Mapping[tuple[DeviceKey, DeviceKey, bool], Link]:
        return {(link.source, link.to, link.is_pinned): link for link in self.links}


def _changed(link: Link, source: DeviceKey, to: DeviceKey, is_pinned: bool, factor: float, why: str) -> Link:
    rate = link.bytes_per_s if factor == 1.0 else link.bytes_per_s.scaled(factor, why)
    return Link(source=source, to=to, is_pinned=is_pinned, bytes_per_s=rate, latency_ps=link.latency_ps)
