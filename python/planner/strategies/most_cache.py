"""The cut that gives the most tokens of cache to the stage that has fewest: the search by time, asked with ever more room for each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil

from planner.errors import InfeasibleError
from planner.strategies.line_tables import MOST, LineProblem
from planner.strategies.timed import LineAnswer, solve_line

__all__ = ["most_tokens"]


def most_tokens(
    problem: LineProblem, token_bits: Sequence[Fraction], *, least: int = 0
) -> tuple[int, LineAnswer]:
    """The most tokens whose cache every device has room for beside what else it runs, and the best plan with that room.

    Args:
        problem: whose pieces lie where they run; `state_bits` are what each keeps whatever the tokens.
        token_bits: by piece, what one token keeps there; 0 for most, and not for all.
        least: fewer are no answer.

    Returns:
        Tokens, and the plan of the problem's objective among those with room for so many.

    Raises:
        InfeasibleError: no plan has room for `least`. Fields: ``is_proven``.
        InvalidInputError: as :func:`planner.strategies.timed.solve_line`.

    Guarantee: no plan of one run a device has room for more, where the searches end before their steps do.

    Cost: a search for each of some sixty numbers of tokens.

    Example:
        >>> from planner.strategies.line_tables import read_table
        >>> table = {"objective": "throughput", "kinds": [{"cap": 100}, {"cap": 60}], "devices": [0, 1], "hop": [[0, 0], [0, 0]],
        ...     "pieces": [{"bits": 20, "run": [1, 1]}] * 4}
        >>> tokens, answer = most_tokens(read_table(table), [Fraction(2)] * 4)
        >>> tokens, [(run.first, run.end) for run in answer.runs]
        (6, [(0, 3), (3, 4)])
    """
    best = solve_line(_with_room(problem, token_bits, least))
    most_bits = max((kind.capacity_bits for kind in problem.kinds), default=0)
    smallest = min((bits for bits in token_bits if bits), default=Fraction(1))
    low, high = least, max(least, int(most_bits / smallest)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        try:
            best = solve_line(_with_room(problem, token_bits, middle))
        except InfeasibleError:
            high = middle
        else:
            low = middle
    return low, best


def _with_room(problem: LineProblem, token_bits: Sequence[Fraction], tokens: int) -> LineProblem:
    """The problem with room for so many tokens; what is beyond every device stays a number that can be added."""
    beyond = max((kind.capacity_bits for kind in problem.kinds), default=0) + 1
    most = min(beyond, MOST // max(1, len(problem.pieces)))
    pieces = tuple(
        replace(piece, state_bits=piece.state_bits + min(most, ceil(tokens * bits))) if bits else piece
        for piece, bits in zip(problem.pieces, token_bits, strict=True)
    )
    return replace(problem, pieces=pieces)
