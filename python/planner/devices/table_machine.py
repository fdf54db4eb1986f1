"""A machine by the table of known cards: what a plan counts with where nothing was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Final

from planner.devices.cards import (
    COMPUTE_EFFICIENCY,
    MEMORY_EFFICIENCY,
    PAGEABLE_EFFICIENCY,
    PINNED_EFFICIENCY,
    UNCERTAINTY,
    Card,
    card_named,
)
from planner.devices.keys import DeviceKey
from planner.devices.machine import Machine
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import Rate

__all__ = ["Host", "machine_of_cards"]

# Of a module on an accelerator and on the host, and of a copy: what people measure of eager PyTorch, give or take a factor of two.
_LAUNCH_PS: Final = 10_000_000
_HOST_LAUNCH_PS: Final = 5_000_000
_LATENCY_PS: Final = 25_000_000
_HOST: Final = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What is known of the host, of which no table tells: its memory depends on how many channels are filled.

    Args:
        memory_bytes_per_s: what it reads; None where nobody said.
        flops_per_s: what it computes, in any type; None as well.
        disk_bytes_per_s: what its disk reads.
    """

    memory_bytes_per_s: int | None = None
    flops_per_s: int | None = None
    disk_bytes_per_s: int | None = None


def machine_of_cards(cards: Mapping[DeviceKey, str], host: Host | None = None) -> Machine:
    """A machine with certain cards, by their data sheets.

    Args:
        cards: name by device, as torch reports it or as people say it: ``{0: "H100 SXM", 1: "RTX 4090"}``.
        host: what somebody knows of it.

    Returns:
        Rates of the sheets times what models meet of them, 30 % uncertain; links between each card and the host; between cards where
        both have some of their own. Of the host only what was said.

    Raises:
        InvalidDevicesError: a card that is not known, or several of that name. Fields: ``device``, ``suggestions``.

    Example:
        >>> machine = machine_of_cards({0: "H100 80GB SXM", 1: "RTX 4090"})
        >>> machine.device(0).memory_bytes_per_s.value, machine.route(0, 1).rule
        (2680000000000, 'through cpu')
    """
    known = {key: card_named(name) for key, name in cards.items()}
    said = host or Host()
    devices = (*(_device(key, card) for key, card in known.items()), _host(said))
    links = [*_to_host(known), *_peers(known)]
    if said.disk_bytes_per_s is not None:
        rate = Rate.of_user(said.disk_bytes_per_s)
        links.append(Link(source="disk", to=_HOST, is_pinned=False, bytes_per_s=rate))
    return Machine(devices=devices, links=tuple(links))


def _device(key: DeviceKey, card: Card) -> MachineDevice:
    return MachineDevice(
        id=key,
        kind=card.kind,
        name=card.name,
        memory_bytes=card.memory_bytes,
        memory_bytes_per_s=_of_sheet(card, card.memory_bytes_per_s, MEMORY_EFFICIENCY),
        flops_per_s={dtype: _of_sheet(card, rate, COMPUTE_EFFICIENCY) for dtype, rate in card.flops.items()},
        launch_ps=_by_rule(_LAUNCH_PS),
    )


def _host(said: Host) -> MachineDevice:
    memory, flops = said.memory_bytes_per_s, said.flops_per_s
    return MachineDevice(
        id=_HOST,
        kind="cpu",
        memory_bytes_per_s=None if memory is None else Rate.of_user(memory),
        flops_per_s={} if flops is None else {"float32": Rate.of_user(flops)},
        launch_ps=_by_rule(_HOST_LAUNCH_PS),
    )


def _to_host(cards: Mapping[DeviceKey, Card]) -> Iterator[Link]:
    for key, card in cards.items():
        if card.host_bytes_per_s is None:
            # Memory that is the host's: what would be copied elsewhere is read where it lies.
            rate = _of_sheet(card, card.memory_bytes_per_s, MEMORY_EFFICIENCY)
            yield Link(source=_HOST, to=key, bytes_per_s=rate, latency_ps=_by_rule(_LATENCY_PS))
            continue
        for is_pinned, share in ((True, PINNED_EFFICIENCY), (False, PAGEABLE_EFFICIENCY)):
            rate = _of_sheet(card, card.host_bytes_per_s, share)
            yield Link(
                source=_HOST, to=key, is_pinned=is_pinned, bytes_per_s=rate, latency_ps=_by_rule(_LATENCY_PS)
            )


def _peers(cards: Mapping[DeviceKey, Card]) -> Iterator[Link]:
    for (source, one), (to, other) in permutations(cards.items(), 2):
        # Cards of one kind: links of unlike generations do not fit together.
        if one.peer_bytes_per_s is None or one.name != other.name:
            continue
        rate = _of_sheet(one, one.peer_bytes_per_s, PINNED_EFFICIENCY)
        yield Link(source=source, to=to, bytes_per_s=rate, latency_ps=_by_rule(_LATENCY_PS))


def _of_sheet(card: Card, value: int, share: float) -> Rate:
    return Rate.of_table(
        round(value * share), UNCERTAINTY, f"{share:g} of {value} ({card.name}, {card.source})"
    )


def _by_rule(value: int) -> Rate:
    return Rate(value=value, origin="table", low=value // 2, high=2 * value, source="by rule")
