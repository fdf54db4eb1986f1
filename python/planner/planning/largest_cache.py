"""What a workload says of the cache that one token takes, so that a cut may be asked for that has room for most."""

from __future__ import annotations

from fractions import Fraction

from planner.errors import InvalidInputError
from planner.planning.line import PlannedLine
from planner.settings.schema import Settings
from planner.settings.strategies import Throughput
from planner.strategies.line_tables import LineProblem
from planner.strategies.most_cache import most_tokens
from planner.strategies.timed import LineAnswer

__all__ = ["wants_cache", "with_most_cache"]


def wants_cache(settings: Settings) -> bool:
    """Whether the cut is asked for that has room for most tokens."""
    return isinstance(settings.strategy, Throughput) and settings.strategy.maximise == "cache"


def with_most_cache(settings: Settings, line: PlannedLine, question: LineProblem) -> tuple[int, LineAnswer]:
    """The most tokens that every device has room for, and the plan.

    Args:
        settings: with a workload.
        line: whose pieces keep what that workload's tokens keep.
        question: about the line, its own cache among what pieces keep.

    Raises:
        InvalidInputError: no workload, or one without a cache.
        InfeasibleError: there is no room for the workload's own tokens.
    """
    workload = settings.workload
    if workload is None:
        raise InvalidInputError(
            "maximise='cache' wants a workload, which says what a token keeps: workload={'context_length': '32k'}"
        )
    tokens = workload.rows * workload.context_length
    caches = [kept.cache_bytes for kept in line.demands]
    if not any(caches):
        raise InvalidInputError("maximise='cache': this workload keeps nothing from one forward to the next")
    # What more than the workload's own tokens takes, each as much as one of these in the mean.
    token_bits = [8 * Fraction(cache_bytes, tokens) * (1 + line.share) for cache_bytes in caches]
    more, answer = most_tokens(question, token_bits)
    return tokens + more, answer
