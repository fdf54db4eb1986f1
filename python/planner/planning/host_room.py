"""Where the host is too small for what a search by time would leave there, though other plans leave it less: what lies there gets a price."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from planner.errors import InfeasibleError
from planner.planning.line import PlannedLine
from planner.planning.line_sizes import HOST
from planner.strategies.line_tables import MOST, LinePiece, LineProblem
from planner.strategies.timed import LineAnswer, solve_line

__all__ = ["answers_of", "answers_with_less_on_the_host"]


def answers_with_less_on_the_host(
    question: LineProblem, line: PlannedLine, lacking_bytes: Callable[[LineAnswer], int]
) -> Iterator[LineAnswer]:
    """Plans that leave less on the host. Their times are not theirs, for they have a price in them; their bounds hold of every plan.

    Args:
        question: about the line; the room of the host counts in it for what the host runs alone.
        line: the pieces.
        lacking_bytes: what an answer leaves on the host beyond the room there, all that is fetched among it.

    Returns:
        That with nothing left there for others; those with some first pieces left there; then by ever closer prices of a byte, the
        least at which there is room.

    Guarantee: where a plan that fetches nothing has room, one is among them.

    Cost: some twenty searches.
    """
    yield from map(_unbounded, answers_of(_with_free(question, 0)))
    # The first pieces are free to lie there and the others may not: among like pieces, a price moves all or none.
    free, closed = 0, len(question.pieces)
    while closed - free > 1:
        count = (free + closed) // 2
        has_room = True
        for answer in answers_of(_with_free(question, count)):
            yield _unbounded(answer)
            has_room = lacking_bytes(answer) <= 0
        free, closed = (count, closed) if has_room else (free, count)
    over, under = -1, _highest_step(question, line)
    while under - over > 1:
        step = (over + under) // 2
        has_room = True
        for answer in answers_of(_priced(question, line, step)):
            yield replace(answer, lower_bound_ps=_bound(question, line, step, answer))
            has_room = lacking_bytes(answer) <= _on_disk_bytes(line, answer, step)
        over, under = (over, step) if has_room else (step, under)


def _unbounded(answer: LineAnswer) -> LineAnswer:
    """The best of some plans tells nothing of the others."""
    return replace(answer, lower_bound_ps=0)


def _bound(question: LineProblem, line: PlannedLine, step: int, answer: LineAnswer) -> int:
    """What no plan is below: with a price, one that has room pays no more than for the whole room."""
    if question.objective != "latency":
        return 0
    room_bytes = line.capacity_bytes.get(HOST, 0)
    return max(0, answer.lower_bound_ps - _price_ps(step, room_bytes) - 1)


def _on_disk_bytes(line: PlannedLine, answer: LineAnswer, step: int) -> int:
    """What an answer fetches that at a price is better fetched from the disk."""
    size_bytes = 0
    for run in answer.runs:
        runner = line.runners[run.device]
        for piece, way in zip(range(run.first, run.end), run.ways, strict=True):
            if way == "fetched" and line.rests(piece) == HOST and line.may_spill(piece):
                size = line.work[piece].weight_bytes
                dear_ps = line.fetch_ps(piece, runner, HOST) + _price_ps(step, size)
                size_bytes += size if line.fetch_ps(piece, runner, "disk") < dear_ps else 0
    return size_bytes


def answers_of(question: LineProblem) -> Iterator[LineAnswer]:
    """The best plan, if there is one."""
    try:
        yield solve_line(question)
    except InfeasibleError:
        return


def _with_free(question: LineProblem, count: int) -> LineProblem:
    """With so many pieces that may lie on the host and run elsewhere, or run there from within another's run."""
    stay = (
        replace(piece, fetch_ps=(None,) * len(piece.fetch_ps), host_ps=None)
        for piece in question.pieces[count:]
    )
    return replace(question, pieces=(*question.pieces[:count], *stay))


def _price_ps(step: int, size_bytes: int) -> int:
    """What so many bytes cost at a step of prices: each is up to a quarter above the one before, from 1/64 ps a byte."""
    return (size_bytes * ((4 + step % 4) << step // 4)) >> 8


def _highest_step(question: LineProblem, line: PlannedLine) -> int:
    """The dearest price with which all times can still be added; 0 where none can be."""
    times = sum(
        max((ps or 0 for ps in piece.run_ps), default=0)
        + max((ps or 0 for ps in piece.fetch_ps), default=0)
        + (piece.host_ps or 0)
        + max((kind.hops_ps for kind in question.kinds), default=0)
        for piece in question.pieces
    )
    often = max((sum(piece.passes) for piece in question.pieces), default=1)
    hops = often * max((ps for row in question.hop_ps for ps in row), default=0) * len(question.devices)
    left_ps = MOST // question.batches - times - hops
    size_bytes = sum(work.weight_bytes for work in line.work)
    step = 0
    while size_bytes and 3 * _price_ps(step + 1, size_bytes) <= left_ps:
        step += 1
    return step


def _priced(question: LineProblem, line: PlannedLine, step: int) -> LineProblem:
    host = next((number for number, kind in enumerate(question.kinds) if kind.is_host), None)

    def from_disk(number: int, kind: int) -> list[int]:
        """What it takes from there, which costs no room."""
        if kind >= len(line.kinds) or not line.may_spill(number):
            return []
        return [line.fetch_ps(number, line.kinds[kind][0], "disk")]

    def priced(number: int, piece: LinePiece) -> LinePiece:
        price_ps = _price_ps(step, line.work[number].weight_bytes)
        is_on_disk = line.rests(number) != HOST
        return replace(
            piece,
            run_ps=tuple(
                ps + price_ps if ps is not None and kind == host else ps
                for kind, ps in enumerate(piece.run_ps)
            ),
            fetch_ps=tuple(
                ps if ps is None or is_on_disk else min((ps + price_ps, *from_disk(number, kind)))
                for kind, ps in enumerate(piece.fetch_ps)
            ),
            host_ps=None if piece.host_ps is None else piece.host_ps + price_ps,
        )

    return replace(
        question, pieces=tuple(priced(number, piece) for number, piece in enumerate(question.pieces))
    )
