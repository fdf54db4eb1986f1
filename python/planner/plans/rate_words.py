"""Which rate would change where a piece runs, and to what, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from math import log

from planner.plans.places import runner_name
from planner.plans.timing import OtherWay, TimedPiece

__all__ = ["rate_sentence"]

_RATES = {
    "memory": "the cpu read {even} of memory a second, not {now}",
    "weights": "the cpu's products got through {even} of weights a second, not {now}",
    "flops": "the cpu made {even} operations a second, not {now}",
}


def rate_sentence(pieces: Iterable[TimedPiece]) -> str:
    """What the way of some pieces hangs on.

    Args:
        pieces: some.

    Returns:
        Of the piece for which the least change does: both times, the rate, and to what, and whether there is room. That room alone
        decides, where no piece has another way.

    Example:
        >>> piece = TimedPiece(name="layers.0.mlp", device=0, way="fetched", run_ps=10**9, fetch_ps=3 * 10**9, hop_ps=0,
        ...     other=OtherWay(way="beside", ps=5 * 10**9, rate="link", per_s=10**10, even_per_s=75 * 10**8))
        >>> rate_sentence([piece])
        "'layers.0.mlp' is fetched in 4 ms and would take 5 ms on the cpu: as long, if the link from the cpu to GPU 0 passed 7.5 GB a second, not 10 GB."
    """
    free = [(piece, piece.other) for piece in pieces if piece.other is not None]
    if not free:
        return "No rate changes that by itself: room decides."
    piece, other = min(free, key=lambda each: abs(log(each[1].even_per_s / each[1].per_s)))
    here_ps = piece.run_ps + piece.fetch_ps + piece.hop_ps
    device = "the cpu" if piece.way == "beside" else runner_name(piece.device)
    is_now = "is fetched" if piece.way == "fetched" else f"runs on {device}"
    then = "on the cpu" if other.way == "beside" else f"fetched to {runner_name(piece.device)}"
    return (
        f"'{piece.name}' {is_now} in {here_ps / 1e9:.3g} ms and would take {other.ps / 1e9:.3g} ms {then}: as long, if "
        f"{_rate_words(piece, other)}{'' if other.has_room else ', and there were room to fetch it'}."
    )


def _rate_words(piece: TimedPiece, other: OtherWay) -> str:
    unit = "" if other.rate == "flops" else " GB"
    now, even = (_giga(each, unit) for each in (other.per_s, other.even_per_s))
    if other.rate == "link":
        return f"the link from the cpu to {runner_name(piece.device)} passed {even} a second, not {now}"
    return _RATES[other.rate].format(even=even, now=now)


def _giga(value: int, unit: str) -> str:
    return f"{value / 1e9:.3g}{unit or ' billion'}"
