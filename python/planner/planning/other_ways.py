"""What else a piece could be that is not resident, and which rate would make that as good."""

from __future__ import annotations

from math import log

from planner.choices import PieceWay, RateKind
from planner.devices.keys import DeviceKey
from planner.planning.line import PlannedLine
from planner.planning.line_sizes import HOST
from planner.plans.timing import OtherWay

__all__ = ["other_way"]

_PS_PER_S = 10**12


def other_way(
    line: PlannedLine, piece: int, stage: DeviceKey, way: PieceWay, *, has_room: bool
) -> OtherWay | None:
    """The other way of a piece, and the rate whose change by the least factor makes both as long.

    Args:
        line: whose pieces run one after the other with what they bring in.
        piece: its number.
        stage: the device of its run.
        way: that it goes.
        has_room: whether there is room to fetch it.

    Returns:
        None where it has no choice but by room: what keeps something runs where its run does, and is fetched only for want of room.
    """
    may_move = stage != HOST and line.host_runs and line.rests(piece) == HOST and piece in line.may_move
    if not may_move or way == "tied":
        return None
    here_ps, beside_ps = line.run_ps(piece, stage), line.run_ps(piece, HOST) + line.beside_ps(stage)
    fetch_ps = 0 if way == "resident" else line.fetch_ps(piece, stage, HOST)
    # As long as what runs on the device takes, the host may take, but for the hops.
    evens = _of_host(line, piece, here_ps + fetch_ps - line.beside_ps(stage))
    if fetch_ps:
        evens += _of_link(line, piece, stage)
    if not evens:
        return None
    rate, value, even = min(evens, key=lambda each: abs(log(each[2] / each[1])))
    is_beside = way == "beside"
    return OtherWay(
        way="fetched" if is_beside else "beside",
        ps=here_ps + fetch_ps if is_beside else beside_ps,
        rate=rate,
        per_s=value,
        even_per_s=even,
        has_room=has_room or not is_beside,
    )


_Even = tuple[RateKind, int, int]


def _of_host(line: PlannedLine, piece: int, most_ps: int) -> list[_Even]:
    """The host's rate with which it takes so long."""
    device, work, sizes = line.machine.device(HOST), line.work[piece], line.sizes
    room_ps = most_ps - (device.launch_ps.value * work.modules if device.launch_ps else 0)
    if room_ps <= 0:
        return []
    measured = device.weights_bytes_per_s.get(sizes.dtype)
    if measured:
        tokens = sorted(measured)
        if tokens[0] < sizes.tokens < tokens[-1]:
            return []  # two rates tell together
        at = tokens[0] if sizes.tokens <= tokens[0] else tokens[-1]
        touched = work.touched_bytes * max(1, sizes.tokens // at)
        return _even("weights", measured[at].value, touched, room_ps)
    memory, compute = device.memory_bytes_per_s, device.compute_rate(sizes.dtype)
    if memory is None or compute is None:
        return []
    reading_ps = work.touched_bytes * _PS_PER_S // memory.value
    computing_ps = work.flops * _PS_PER_S // compute.value
    if reading_ps >= computing_ps:
        return _even("memory", memory.value, work.touched_bytes, room_ps) if computing_ps < room_ps else []
    return _even("flops", compute.value, work.flops, room_ps) if reading_ps < room_ps else []


def _of_link(line: PlannedLine, piece: int, stage: DeviceKey) -> list[_Even]:
    """The link's rate with which fetching takes as long as running on the host, which sends what passes over it, too."""
    there, back = line.machine.route(HOST, stage), line.machine.route(stage, HOST)
    if len(there.links) != 1:
        return []
    (link,), activation = there.links, line.sizes.activation_bytes
    latency_ps = link.latency_ps.value if link.latency_ps else 0
    is_both_ways = back.rule == "as fast as the other way"
    passed = activation * (2 if is_both_ways else 1)
    rest_ps = latency_ps if is_both_ways else back.copy_ps(activation)
    room_ps = line.run_ps(piece, HOST) + rest_ps - line.run_ps(piece, stage)
    return _even("link", link.bytes_per_s.value, line.work[piece].weight_bytes - passed, room_ps)


def _even(rate: RateKind, value: int, amount: int, room_ps: int) -> list[_Even]:
    if amount <= 0 or room_ps <= 0:
        return []
    even = amount * _PS_PER_S // room_ps
    return [(rate, value, even)] if even else []
