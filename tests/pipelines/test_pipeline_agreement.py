"""Processes that do not agree are told so before weights are read, each of them the cause; and what one cannot do, all hear."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.ranks import Rank, run_ranks
from pipelines.stage_models import family
from pipelines.whole import saved
from planner.errors import (
    CheckpointError,
    InvalidInputError,
    PipelineError,
    PlanMismatchError,
)
from planner.pipelines.agreement import Room, Seat, require_room, require_seats
from planner.pipelines.planned import require_planned
from planner.pipelines.runs import StageRun, stage_runs
from planner.pipelines.stage import prepare_stage

FOLDER = str(family("llama").folder)
CALL = {"ids": [[5, 6, 7]], "max_new_tokens": 2, "eos_token_id": None}


def opened(processes: int, by_rank: Sequence[dict[str, Any]], **more: Any) -> list[Rank]:
    """Ranks that open a pipeline, each with its own arguments, and generate two tokens."""
    ranks = run_ranks("differing", processes, by_rank=by_rank, calls=[CALL], limit_s=30, **more)
    assert None not in [rank.code for rank in ranks], "nobody waits for ever"
    return ranks


def of_all(processes: int, said: dict[str, Any], *, other: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The same arguments for every rank, but for some."""
    base = {"folder": FOLDER, "timeout_s": 5, **said}
    return [{**base, **other.get(rank, {})} for rank in range(processes)]


@pytest.mark.parametrize(("processes", "stages"), [(3, (2, 3)), (2, (1, 1, 3))])
def test_more_or_fewer_processes_than_stages(processes: int, stages: Sequence[int]) -> None:
    for rank in opened(processes, of_all(processes, {"stages": stages}, other={})):
        assert type(rank.error) is PipelineError
        said = str(rank.error)
        assert f"{len(stages)} stages and {processes} processes" in said
        assert f"--nproc-per-node {len(stages)}" in said and f"plan for {processes} devices" in said


def test_ranks_with_another_plan_are_named_on_every_rank() -> None:
    for rank in opened(3, of_all(3, {"stages": (1, 2, 2)}, other={1: {"stages": (2, 1, 2)}})):
        assert isinstance(rank.error, PipelineError) and rank.error.rank == 1
        assert str(rank.error) == "rank 1 came with another plan than rank 0: give every rank the same file"


def test_ranks_with_other_options_are_named() -> None:
    for rank in opened(2, of_all(2, {"stages": (2, 3)}, other={1: {"microbatches": 2}})):
        assert isinstance(rank.error, PipelineError) and "rank 1 came with other options" in str(rank.error)


def test_stages_of_another_checkpoint_are_refused_on_every_rank() -> None:
    for rank in opened(2, of_all(2, {"stages": (2, 4)}, other={})):
        assert isinstance(rank.error, PlanMismatchError)
        assert "6 layers" in str(rank.error) and "5" in str(rank.error)


def test_the_plan_of_another_checkpoint_is_refused_on_every_rank(tmp_path: Path) -> None:
    """Of as many layers, of other sizes."""
    (tmp_path / "plan.json").write_text(saved("qwen3_moe").plan("throughput").to_json())
    by_rank = of_all(2, {"plan": str(tmp_path / "plan.json")}, other={})
    for number, rank in enumerate(opened(2, by_rank)):
        assert isinstance(rank.error, PlanMismatchError)
        assert str(rank.error).startswith("the plan was made for another checkpoint: the plan has ")
        assert f"in 'model.layers.{(0, 3)[number]}'" in str(rank.error)


def test_tensors_have_the_dtypes_that_a_plan_gives_them() -> None:
    """All one, and some another; the plan is held against what will be read."""
    special = {"model.layers.0.mlp.up_proj.weight": "float32"}
    plan = saved("llama").plan("throughput", special_dtypes=special, dtype="bfloat16")
    runs = stage_runs(plan)
    prepared = prepare_stage(FOLDER, runs, 0, dtype="bfloat16", special_dtypes=special)
    targets = prepared.weights.judged.targets
    wanted = {target.name: target.wanted for target in targets if target.wanted is not None}
    assert wanted["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32
    assert wanted["model.layers.0.mlp.gate_proj.weight"].dtype == torch.bfloat16
    require_planned(plan, prepared)
    with pytest.raises(PlanMismatchError, match=r"another checkpoint: the plan has .* in 'model\.layers\.0'"):
        require_planned(plan, prepare_stage(FOLDER, runs, 0, dtype="bfloat16"))


def test_ranks_with_other_files_are_named(tmp_path: Path) -> None:
    other = str(family("qwen3_moe").folder)
    for rank in opened(2, of_all(2, {"stages": (2, 3)}, other={1: {"folder": other}})):
        assert isinstance(rank.error, PipelineError) and rank.error.rank == 1
        assert "found other tensors in the checkpoint" in str(rank.error)


def test_a_truncated_shard_on_one_rank_ends_all(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "other")
    index = json.loads((tmp_path / "other" / "model.safetensors.index.json").read_text())
    shard = tmp_path / "other" / index["weight_map"]["model.layers.4.mlp.up_proj.weight"]
    shard.write_bytes(shard.read_bytes()[:-100])
    ranks = opened(2, of_all(2, {"stages": (2, 3)}, other={1: {"folder": str(tmp_path / "other")}}))
    assert isinstance(ranks[1].error, CheckpointError)
    assert isinstance(ranks[0].error, PipelineError) and ranks[0].error.rank == 1
    assert ranks[0].error.layers == range(2, 5)
    assert f"cannot begin: CheckpointError: {ranks[1].error}"[:80] in str(ranks[0].error)


def test_a_file_that_fails_while_it_is_read_ends_all() -> None:
    ranks = opened(2, of_all(2, {"stages": (2, 3)}, other={0: {"reading": "raises"}}))
    assert isinstance(ranks[0].error, OSError)
    assert isinstance(ranks[1].error, PipelineError) and ranks[1].error.rank == 0
    assert "cannot begin: OSError: [Errno 5] Input/output error" in str(ranks[1].error)


@pytest.mark.parametrize("reading", ["exits", "is interrupted"])
def test_a_process_that_ends_while_it_reads_is_named(reading: str) -> None:
    ranks = opened(2, of_all(2, {"stages": (2, 3)}, other={0: {"reading": reading}}))
    assert isinstance(ranks[1].error, PipelineError) and ranks[1].error.rank == 0


def test_no_plan_in_the_file_of_one_rank() -> None:
    by_rank = of_all(2, {"stages": (2, 3)}, other={1: {"stages": None, "plan": "nowhere.json"}})
    ranks = opened(2, by_rank)
    assert isinstance(ranks[1].error, InvalidInputError)
    assert isinstance(ranks[0].error, PipelineError) and "nowhere.json" in str(ranks[0].error)


def test_a_device_that_is_not_there() -> None:
    ranks = opened(2, of_all(2, {"stages": (2, 3)}, other={1: {"device": "cuda:7"}}))
    assert isinstance(ranks[1].error, InvalidInputError)
    for rank in ranks:
        assert "cuda:7 is not there" in str(rank.error)


def test_a_process_that_was_never_started_is_named() -> None:
    ranks = opened(2, of_all(2, {"stages": (2, 3), "timeout_s": 1}, other={}), started=1)
    assert isinstance(ranks[0].error, PipelineError) and ranks[0].error.rank == 1
    assert "rank 1 did not come within timeout_s=1" in str(ranks[0].error)


def test_a_port_in_use_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        by_rank = of_all(2, {"stages": (2, 3), "timeout_s": 2}, other={})
        ranks = opened(2, by_rank, port=port, keeps_store=True)
    assert isinstance(ranks[0].error, PipelineError) and isinstance(ranks[1].error, PipelineError)
    assert f"port {port} is in use" in str(ranks[0].error) and "--rdzv-endpoint" in str(ranks[0].error)
    assert f"did not find each other at 127.0.0.1:{port}" in str(ranks[1].error)


def test_a_second_pipeline_in_the_same_group() -> None:
    """Both work, in turn, and the group lives until the second one is closed."""
    ranks = run_ranks("two_pipelines", 2, folder=FOLDER, calls=[CALL])
    assert [rank.code for rank in ranks] == [0, 0], ranks[0].log + ranks[1].log
    assert ranks[0].value == ranks[1].value
    assert ranks[0].value["tokens"] == [ranks[0].value["tokens"][0]] * 3
    assert ranks[0].value["has_group"] == [True, True, False]


def test_a_group_of_the_callers_is_joined_and_left() -> None:
    ranks = run_ranks("callers_group", 2, folder=FOLDER, calls=[CALL])
    assert [rank.code for rank in ranks] == [0, 0], ranks[0].log + ranks[1].log
    assert [rank.value for rank in ranks] == [{"sum": 1.0}, {"sum": 1.0}]


def test_one_stage_needs_no_torchrun() -> None:
    ranks = run_ranks("alone", 1, folder=FOLDER, calls=[CALL])
    assert ranks[0].code == 0, ranks[0].log


RUNS = stage_runs((1, 2))


def test_one_device_for_two_ranks_is_refused() -> None:
    with pytest.raises(PipelineError, match=r"ranks 0 and 1 would both run on cuda:0 of head") as caught:
        require_seats([Seat("head", "cuda:0"), Seat("head", "cuda:0")], RUNS)
    assert (caught.value.rank, caught.value.stage, caught.value.layers) == (1, 1, range(1, 3))
    require_seats([Seat("head", "cuda:0"), Seat("other", "cuda:0")], RUNS)
    require_seats([Seat("head", "cpu"), Seat("head", "cpu")], RUNS)
    require_seats([Seat("localhost", "cuda:0", "one"), Seat("localhost", "cuda:0", "another")], RUNS)


def test_devices_of_several_kinds_are_refused() -> None:
    with pytest.raises(PipelineError, match="rank 1 would run on cpu and rank 0 on cuda"):
        require_seats([Seat("head", "cuda:0"), Seat("head", "cpu")], RUNS)


def test_nodes_of_a_plan_are_machines() -> None:
    runs = [StageRun(0, 2, range(1), "a/0"), StageRun(1, 2, range(1, 3), "a/1")]
    require_seats([Seat("head", "cuda:0"), Seat("head", "cuda:1")], runs)
    with pytest.raises(PipelineError, match="stage 1 on node a as others, and rank 1 is on other"):
        require_seats([Seat("head", "cuda:0"), Seat("other", "cuda:1")], runs)
    apart = [StageRun(0, 2, range(1), "a/0"), StageRun(1, 2, range(1, 3), "b/0")]
    with pytest.raises(PipelineError, match="nodes a and b, and ranks of both are on head"):
        require_seats([Seat("head", "cuda:0"), Seat("head", "cuda:1")], apart)


def test_a_stage_beyond_free_memory_is_refused() -> None:
    def room(host: str, needed: int, free: int | None) -> Room:
        return Room(host, "cpu", "same", needed, free)

    require_room([room("head", 10, 25), room("head", 10, 20)], RUNS)
    require_room([room("head", 10, 15), room("other", 10, None)], RUNS)
    with pytest.raises(
        PipelineError, match="ranks 0, 1 would hold 20 B of weights on cpu of head, which has 15 B free"
    ):
        require_room([room("head", 10, 15), room("head", 10, 25)], RUNS)
