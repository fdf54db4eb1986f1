"""Whatever ends one process of a pipeline ends the calls of all others in time, and they say which it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.ranks import Rank, run_ranks
from pipelines.stage_models import family
from planner.errors import InvalidInputError, PipelineError

FOLDER = str(family("llama").folder)
TIMEOUT_S = 2.0
CALL: dict[str, Any] = {"ids": [[5, 6, 7], [8, 9, 10]], "max_new_tokens": 8, "eos_token_id": None}
# How long a busy machine may take to get round to what was found in time.
SLACK_S = 2.0


def struck(kind: str, at_rank: int, tmp_path: Path, *, keeps_store: bool = False) -> tuple[list[Rank], float]:
    """What becomes of three ranks when something happens to one at its fourth step, and when it happened."""
    told = tmp_path / "told"
    ranks = run_ranks(
        "fault",
        3,
        folder=FOLDER,
        opened={"stages": (1, 3, 1), "timeout_s": TIMEOUT_S},
        calls=[CALL],
        at_rank=at_rank,
        kind=kind,
        step=4,
        told=str(told),
        unawaited=[at_rank] if kind in ("hangs", "is stopped") else [],
        limit_s=TIMEOUT_S + 8,
        keeps_store=keeps_store,
    )
    return ranks, float(told.read_text())


SAID = {
    "exits": "has given no sign of life",
    "is killed": "has given no sign of life",
    "is stopped": "has given no sign of life",
    "hangs": "has been computing for",
    "raises": "raised: ArithmeticError: a kernel that failed",
    "is interrupted": "raised: KeyboardInterrupt",
}


@pytest.mark.parametrize("said", sorted(set(SAID.values())))
def test_the_page_has_what_is_said(said: str) -> None:
    assert said in (Path(__file__).parent.parent.parent / "docs" / "machines.md").read_text()


@pytest.mark.parametrize(
    ("kind", "at_rank"),
    [*((kind, 1) for kind in SAID), ("is interrupted", 0), ("is stopped", 2), ("raises", 2)],
)
def test_what_happens_to_one_rank_ends_all_others(kind: str, at_rank: int, tmp_path: Path) -> None:
    ranks, struck_s = struck(kind, at_rank, tmp_path)
    layers = (range(1), range(1, 4), range(4, 5))[at_rank]
    for number, rank in enumerate(ranks):
        if number == at_rank:
            continue
        assert type(rank.error) is PipelineError, rank.log
        assert (rank.error.rank, rank.error.stage, rank.error.layers) == (at_rank, at_rank, layers)
        assert rank.error.step == 4
        assert SAID[kind] in str(rank.error)
        assert "gloo" in rank.cause, "the back end's error is the cause"
        assert rank.ended_s - struck_s < TIMEOUT_S + SLACK_S
    if kind in ("raises", "is interrupted"):
        assert ranks[at_rank].ended_s - struck_s < SLACK_S, "nobody waits for who is still there"
        wanted = PipelineError if kind == "raises" else KeyboardInterrupt
        assert type(ranks[at_rank].error) is wanted


@pytest.mark.parametrize("kind", ["exits", "is stopped"])
def test_a_rank_that_keeps_the_store_may_be_the_one(kind: str, tmp_path: Path) -> None:
    """Without torchrun, what the ranks tell each other goes with rank 0."""
    ranks, struck_s = struck(kind, 0, tmp_path, keeps_store=True)
    for rank in ranks[1:]:
        assert isinstance(rank.error, PipelineError) and rank.error.rank == 0, rank.log
        assert "the process that keeps the group's store" in str(rank.error)
        assert rank.ended_s - struck_s < TIMEOUT_S + SLACK_S


def test_a_rank_that_does_not_call_is_named() -> None:
    ranks = run_ranks(
        "leaving", 2, folder=FOLDER, opened={"stages": (2, 3), "timeout_s": 1}, call=CALL, how="stays away"
    )
    assert isinstance(ranks[0].error, PipelineError) and ranks[0].error.rank == 1
    assert "rank 1 (stage 1, layers 2–4) did not come within timeout_s=1" in str(ranks[0].error)


def test_a_rank_that_keeps_the_store_may_be_stopped_between_calls() -> None:
    """torch's store waits for its answers for ever."""
    ranks = run_ranks(
        "leaving",
        2,
        folder=FOLDER,
        opened={"stages": (2, 3), "timeout_s": TIMEOUT_S},
        call=CALL,
        how="is stopped",
        who=0,
        keeps_store=True,
        unawaited=[0],
        limit_s=20,
    )
    assert isinstance(ranks[1].error, PipelineError) and ranks[1].error.rank == 0, ranks[1].log
    assert "the process that keeps the group's store" in str(ranks[1].error)


def test_a_rank_that_has_closed_is_named_at_once() -> None:
    ranks = run_ranks(
        "leaving", 2, folder=FOLDER, opened={"stages": (2, 3), "timeout_s": 60}, call=CALL, how="closes"
    )
    assert isinstance(ranks[0].error, PipelineError) and ranks[0].error.rank == 1
    assert "has closed its pipeline while others still call it" in str(ranks[0].error)


def test_a_rank_that_raises_between_calls_is_named_at_once() -> None:
    ranks = run_ranks(
        "leaving", 2, folder=FOLDER, opened={"stages": (2, 3), "timeout_s": 60}, call=CALL, how="raises"
    )
    assert isinstance(ranks[1].error, ArithmeticError)
    assert isinstance(ranks[0].error, PipelineError) and ranks[0].error.rank == 1
    assert "left its pipeline: ArithmeticError: a kernel that failed" in str(ranks[0].error)


def test_calls_that_differ_are_told_on_every_rank_and_the_next_one_works() -> None:
    """So are arguments of one rank that make no sense."""
    ranks = run_ranks("differing_calls", 2, folder=FOLDER, call=CALL)
    for rank in ranks:
        assert rank.code == 0, rank.log
        first, second, tokens = rank.value
        assert "rank 1 (stage 1, layers 2–4) was called with other arguments than rank 0" in first
        assert "max_new_tokens must be a whole number of at least 1, not 0" in second
        assert len(tokens[0]) == 11
    assert InvalidInputError.__name__ in ranks[1].value[1] and "rank 1" in ranks[0].value[1]


def test_a_pipeline_that_has_ended_says_so() -> None:
    ranks = run_ranks("after_a_fault", 2, folder=FOLDER, call=CALL)
    for rank in ranks:
        assert rank.code == 0, rank.log
        first, second = rank.value
        assert "raised: ArithmeticError" in first
        assert second == f"this pipeline is over, make another one: {first}"
