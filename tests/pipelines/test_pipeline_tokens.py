"""What pipelines of real processes generate is what the whole model generates in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.ranks import run_ranks
from pipelines.whole import LEFT_PADDED, WORDS, Whole, saved
from planner.pipelines.runs import stage_runs

MOST = 7


def piped(
    whole: Whole, counts: Sequence[int], calls: Sequence[dict[str, Any]], **opened: Any
) -> list[dict[str, Any]]:
    """What each rank returns."""
    ranks = run_ranks(
        "generate",
        len(counts),
        folder=str(whole.folder),
        opened={"stages": counts, "timeout_s": 30, **opened},
        calls=calls,
    )
    for rank in ranks:
        assert rank.code == 0, rank.log
        assert not rank.log, "nothing is printed that nobody asked for"
    return [rank.value for rank in ranks]


def require_same(whole: Whole, counts: Sequence[int], call: dict[str, Any], **opened: Any) -> Tensor:
    """Every rank has the whole model's tokens."""
    wanted = whole.tokens(call)
    for found in piped(whole, counts, [call], **opened):
        assert found["tokens"] == [wanted.tolist()]
    return wanted


@pytest.mark.parametrize(
    ("family", "counts"),
    [("llama", (1, 4)), ("gemma3", (2, 1, 2)), ("gpt_oss", (3, 2)), ("qwen3_moe", (1, 1, 2, 1))],
)
@pytest.mark.parametrize("microbatches", [1, 2])
def test_tokens_are_those_of_the_whole_model(family: str, counts: Sequence[int], microbatches: int) -> None:
    call = {**LEFT_PADDED, "max_new_tokens": MOST, "eos_token_id": None}
    require_same(saved(family), counts, call, microbatches=microbatches)


def test_rows_end_at_different_steps_and_all_ranks_in_one() -> None:
    """Rows that have ended get padding; the last step is that in which the last row ends."""
    whole = saved("llama")
    call = {**LEFT_PADDED, "max_new_tokens": 12, "eos_token_id": None}
    free = whole.tokens(call)[:, len(LEFT_PADDED["ids"][0]) :]
    ends = [
        int(row[1 + 3 * number]) for number, row in enumerate(free)
    ]  # the second of one row, the fifth of the next
    wanted = require_same(whole, (2, 3), {**call, "eos_token_id": ends, "pad_token_id": 0})
    new = wanted[:, len(LEFT_PADDED["ids"][0]) :]
    assert new.shape[1] < 12
    assert (new == 0).any() and not (new == 0).all(dim=1).any()


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7, "top_k": 9}, {"top_p": 0.8}], ids=str)
def test_drawn_tokens_are_those_of_one_seed(how: dict[str, Any]) -> None:
    call = {**LEFT_PADDED, "max_new_tokens": MOST, "eos_token_id": None, "do_sample": True, "seed": 3, **how}
    drawn = require_same(saved("llama"), (3, 2), call, microbatches=2)
    assert not torch.equal(drawn, saved("llama").tokens({**call, "seed": 4}))


def test_one_pipeline_is_called_several_times() -> None:
    """Caches of a call are gone in the next; rows that micro-batches do not divide are cut in fewer."""
    whole = saved("llama")
    calls = [
        {"ids": [[5, 6, 7]], "max_new_tokens": 3, "eos_token_id": None},
        {**LEFT_PADDED, "max_new_tokens": 4, "eos_token_id": None},
        {"ids": [[5, 6, 7]], "max_new_tokens": 3, "eos_token_id": None},
    ]
    for found in piped(whole, (1, 4), calls, microbatches=2):
        assert found["tokens"] == [whole.tokens(call).tolist() for call in calls]


def test_logits_are_those_of_the_whole_model_bit_for_bit() -> None:
    whole = saved("llama")
    ids = torch.randint(1, WORDS, (2, 9), generator=torch.Generator().manual_seed(0))
    ranks = run_ranks("forward", 2, folder=str(whole.folder), stages=(1, 4), ids=ids.tolist())
    assert [rank.code for rank in ranks] == [0, 0], ranks[0].log + ranks[1].log
    logits = whole.logits(ids)
    assert ranks[0].value is None
    assert torch.equal(torch.tensor(ranks[1].value), logits)


def test_each_process_reads_its_own_and_frees_its_caches() -> None:
    """Layers are alike: what five stages read is what one reads, and caches are as long as what was run."""
    whole = saved("llama")
    calls = [{"ids": [[5, 6, 7], [8, 9, 10]], "max_new_tokens": 4, "eos_token_id": None}]
    found = piped(whole, (1, 3, 1), calls)
    own = sum(tensor.nbytes for tensor in whole.model.state_dict().values())
    assert sum(each["read_bytes"] for each in found) == own
    config = whole.model.config
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    layer_bytes = 2 * 2 * (3 + 4 - 1) * width * 4  # keys and values, rows, tokens that were run, float32
    assert [each["cache_bytes"] for each in found] == [layer_bytes, 3 * layer_bytes, layer_bytes]
    assert [each["caches_left"] for each in found] == [0, 0, 0]


@pytest.mark.parametrize(("said", "wanted"), [(None, 4), (1, 1)])
def test_a_plan_says_the_stages_and_the_micro_batches(said: int | None, wanted: int, tmp_path: Path) -> None:
    """Rows are cut as the plan was made for, unless the caller says otherwise."""
    whole = saved("llama")
    plan = whole.plan({"type": "pipeline", "microbatches": 4})
    (tmp_path / "plan.json").write_text(plan.to_json())
    counts = [len(run.layers) for run in stage_runs(plan)]
    assert sum(counts) == 5 and len(counts) == 2
    calls = [{"ids": [[5, 6], [7, 8], [9, 10], [11, 12]], "max_new_tokens": 3, "eos_token_id": None}]
    found = piped(whole, (1, 1), calls, stages=None, plan=str(tmp_path / "plan.json"), microbatches=said)
    assert [len(each["layers"]) for each in found] == counts
    assert [each["microbatches"] for each in found] == [wanted, wanted]
    assert found[1]["tokens"] == [whole.tokens(calls[0]).tolist()]
