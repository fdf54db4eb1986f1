"""Odd calls are told on every rank at once, what fails is named for what it is, and a pipeline leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.ranks import Rank, run_ranks
from pipelines.stage_models import family
from planner.errors import InvalidInputError, PipelineError
from planner.pipelines.runs import stage_runs

FOLDER = str(family("llama").folder)
CALL: dict[str, Any] = {"ids": [[5, 6, 7], [8, 9, 10]], "max_new_tokens": 3, "eos_token_id": None}


def odd(work: str, processes: int = 2, **arguments: Any) -> list[Rank]:
    return run_ranks(f"pipelines.odd_work:{work}", processes, **{"folder": FOLDER, **arguments})


ODD: list[tuple[dict[str, Any], str]] = [
    ({"device": "meta"}, "ids must be whole numbers in rows (rows, tokens), not torch.int64 of (2, 3) on meta"),
    ({"dtype": "bool"}, "not torch.bool of (2, 3)"),
    ({"dtype": "complex64"}, "not torch.complex64 of (2, 3)"),
    ({"pad_token_id": 64}, "pad_token_id must be a token's number, from 0 to 63, not 64"),
    ({"eos_token_id": 1 << 70}, "eos_token_id must be a token's number, from 0 to 63"),
    ({"attention_mask": [[5, 1, 1], [1, 1, 1]]}, "attention_mask must be 1 for tokens and 0 for padding"),
    ({"do_sample": True, "seed": 1 << 70}, "seed must be a whole number of 64 bits"),
    ({"do_sample": True, "temperature": 10**400}, "temperature must be a number above 0"),
]  # fmt: skip


def test_what_one_rank_is_called_with_is_judged_on_all_and_the_next_call_works() -> None:
    ranks = odd("tried", calls=[[CALL, {**CALL, **wrong}] for wrong, _ in ODD] + [CALL])
    for rank in ranks:
        assert rank.code == 0, rank.log
        *said, tokens = rank.value
        for text, (_, wanted) in zip(said, ODD, strict=True):
            assert wanted in text
        assert len(tokens[0]) == 6
    assert all(text.startswith("PipelineError: rank 1 ") for text in ranks[0].value[:-1])
    assert all(text.startswith("InvalidInputError: ") for text in ranks[1].value[:-1])


def test_more_layers_than_can_be_counted() -> None:
    with pytest.raises(InvalidInputError, match="stage 0 would have 1000"):
        stage_runs((10**30, 1))


@pytest.mark.parametrize("keeps_store", [False, True])
def test_pipelines_one_after_the_other_leave_no_weights(keeps_store: bool) -> None:
    """Neither with the store that torchrun keeps for all of them, nor with one that goes with each."""
    ranks = odd("one_after_the_other", call=CALL, keeps_store=keeps_store)
    assert [rank.code for rank in ranks] == [0, 0], ranks[0].log + ranks[1].log
    for rank in ranks:
        tokens, weights, left = zip(*rank.value, strict=True)
        assert tokens == (tokens[0],) * 3
        assert min(weights) > 0 and left == (0, 0, 0)


def test_a_process_that_stands_still_while_it_makes_its_stage_is_named() -> None:
    ranks = odd("standing_still", seconds=1.0, unawaited=[1], limit_s=30)
    assert isinstance(ranks[0].error, PipelineError) and ranks[0].error.rank == 1, ranks[0].log
    assert "has got no further for" in str(ranks[0].error)


def test_who_fails_to_connect_is_named_and_not_who_waits_for_it() -> None:
    ranks = odd("unconnected")
    assert isinstance(ranks[1].error, ArithmeticError)
    assert isinstance(ranks[0].error, PipelineError) and ranks[0].error.rank == 1
    assert "cannot begin: ArithmeticError: no such network" in str(ranks[0].error)


def test_an_error_of_ones_own_is_not_taken_for_one_of_a_connection() -> None:
    for rank in odd("failing_alone", call=CALL):
        assert isinstance(rank.error, PipelineError) and rank.error.rank == 1
        assert "raised: TypeError: 'NoneType' object is not callable" in str(rank.error)


@pytest.mark.parametrize("number", ["7", "-1"])
def test_a_rank_beyond_the_number_of_processes_is_refused_at_once(number: str) -> None:
    for rank in odd("ranked", environment={"RANK": number}):
        assert isinstance(rank.error, InvalidInputError)
        assert f"RANK is {number} and WORLD_SIZE 2" in str(rank.error)


def test_ranks_with_another_configuration_are_named(tmp_path: Path) -> None:
    """Same tensors, other angles of positions: without a word, tokens would be other ones."""
    shutil.copytree(FOLDER, tmp_path / "other")
    place = tmp_path / "other" / "config.json"
    config = json.loads(place.read_text())
    config["rope_parameters"]["rope_theta"] *= 2
    place.write_text(json.dumps(config))
    by_rank = [
        {"folder": folder, "stages": (2, 3), "timeout_s": 20} for folder in (FOLDER, str(tmp_path / "other"))
    ]
    for rank in run_ranks("differing", 2, by_rank=by_rank, calls=[CALL]):
        assert isinstance(rank.error, PipelineError) and rank.error.rank == 1, rank.log
        assert "or another configuration" in str(rank.error)
