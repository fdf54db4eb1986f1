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
    question: LineProblem, line: PlannedLine, is_over: Callable[[LineAnswer], bool]
) -> Iterator[LineAnswer]:
    """Plans that leave less on the host; their times are not theirs, for they have a price in them.

    Args:
        question: about the line; the room of the host counts in it for what the host runs alone.
        line: the pieces.
        is_over: whether an answer leaves more on the host than there is room for.

    Returns:
        That with nothing left there for others; those with some first pieces left there; then by ever closer prices of a byte, the
        least at which there is room.

    Guarantee: where a plan that fetches nothing has room, one is among them.

    Cost: some twenty searches.
    """
    yield from answers_of(_with_free(question, 0))
    # The first pieces are free to lie there and the others may not: among like pieces, a price moves all or none.
    free, closed = 0, len(question.pieces)
    while closed - free > 1:
        count = (free + closed) // 2
        has_room = True
        for answer in answers_of(_with_free(question, count)):
            yield answer
            has_room = not is_over(answer)
        free, closed = (count, closed) if has_room else (free, count)
    over, under = -1, _highest_step(question, line)
    while under - over > 1:
        step = (over + under) // 2
        has_room = True
        for answer in answers_of(_priced(question, line, step)):
            yield answer
            has_room = not is_over(answer)
        over, under = (over, step) if has_room else (step, under)


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
    hops = max((ps for row in question.hop_ps for ps in row), default=0) * len(question.devices)
    left_ps = MOST // question.batches - times - hops
    size_bytes = sum(work.weight_bytes for work in line.work)
    step = 0
    while size_bytes and 3 * _price_ps(step + 1, size_bytes) <= left_ps:
        step += 1
    return step


def _priced(question: LineProblem, line: PlannedLine, step: int) -> LineProblem:
    host = next((number for number, kind in enumerate(question.kinds) if kind.is_host), None)

    def priced(number: int, piece: LinePiece) -> LinePiece:
        price_ps = _price_ps(step, line.work[number].weight_bytes)
        is_on_disk = line.rests(number) != HOST
        return replace(
            piece,
            run_ps=tuple(
                ps + price_ps if ps is not None and kind == host else ps
                for kind, ps in enumerate(piece.run_ps)
            ),
            fetch_ps=tuple(ps if ps is None or is_on_disk else ps + price_ps for ps in piece.fetch_ps),
            host_ps=None if piece.host_ps is None else piece.host_ps + price_ps,
        )

    return replace(
        question, pieces=tuple(priced(number, piece) for number, piece in enumerate(question.pieces))
    )
