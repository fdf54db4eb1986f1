"""Pipelines over two accelerators of one machine, by nccl."""

from __future__ import annotations

import pytest
import torch

from pipelines.ranks import run_ranks
from pipelines.whole import LEFT_PADDED, saved

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.mark.parametrize("microbatches", [1, 2])
def test_tokens_are_those_of_the_whole_model_on_one_gpu(microbatches: int) -> None:
    whole = saved("llama")
    call = {**LEFT_PADDED, "max_new_tokens": 8, "eos_token_id": None}
    whole.model.to("cuda:0")
    try:
        wanted = whole.tokens(call, "cuda:0").tolist()
    finally:
        whole.model.to("cpu")
    opened = {"stages": (2, 3), "timeout_s": 60, "microbatches": microbatches}
    ranks = run_ranks("generate", 2, folder=str(whole.folder), opened=opened, calls=[call])
    for number, rank in enumerate(ranks):
        assert rank.code == 0, rank.log
        assert rank.value["tokens"] == [wanted]
        assert rank.value["device"] == f"cuda:{number}"
        assert rank.value["caches_left"] == 0


def test_a_rank_that_hangs_is_named(tmp_path: object) -> None:
    call = {**LEFT_PADDED, "max_new_tokens": 8, "eos_token_id": None}
    ranks = run_ranks(
        "fault",
        2,
        folder=str(saved("llama").folder),
        opened={"stages": (2, 3), "timeout_s": 10},
        calls=[call],
        at_rank=1,
        kind="hangs",
        step=4,
        told=f"{tmp_path}/told",
        unawaited=[1],
    )
    assert getattr(ranks[0].error, "rank", None) == 1, ranks[0].log


def test_two_ranks_on_one_gpu_are_refused() -> None:
    by_rank = [
        {"folder": str(saved("llama").folder), "stages": (2, 3), "device": "cuda:0", "timeout_s": 20}
    ] * 2
    call = {**LEFT_PADDED, "max_new_tokens": 1}
    for rank in run_ranks("differing", 2, by_rank=by_rank, calls=[call]):
        assert "ranks 0 and 1 would both run on cuda:0" in str(rank.error)
