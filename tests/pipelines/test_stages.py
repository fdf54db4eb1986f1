"""Stages one after the other compute what the whole model does, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipelines.stage_models import FAMILIES, Chain, family, forwards, save, stages_of, whole_logits
from planner.pipelines.stage import Stage

CUTS = {5: [(1, 4), (2, 1, 2), (3, 1, 1)], 6: [(1, 5), (3, 2, 1)]}


def chained(stages: list[Stage], padding: int) -> list[Tensor]:
    chain = Chain(stages)
    return [
        chain(ids, attention_mask=mask, position_ids=positions) for ids, mask, positions in forwards(padding)
    ]


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_give_the_logits_of_the_whole_model(name: str) -> None:
    saved = family(name)
    wanted = {padding: whole_logits(saved.model, padding) for padding in (0, 3)}
    assert all(bool(logits.isfinite().all()) for each in wanted.values() for logits in each)
    for counts in CUTS[saved.layers]:
        stages = stages_of(saved.folder, counts)
        for padding, logits in wanted.items():
            assert same(chained(stages, padding), logits), (counts, padding)


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral", "opt", "mamba"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_what_is_handed_on_between_stages(name: str, dtype: torch.dtype) -> None:
    """Mamba keeps its sums in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        saved = save(FAMILIES[name]().to(dtype))
    assert same(chained(stages_of(saved.folder, (2, 1, 2)), 2), whole_logits(saved.model, 2))


def test_a_model_in_one_stage_and_in_as_many_as_it_has_layers() -> None:
    saved = family("gemma3")
    wanted = whole_logits(saved.model, 1)
    assert same(chained(stages_of(saved.folder, (5,)), 1), wanted)
    assert same(chained(stages_of(saved.folder, (1, 1, 1, 1, 1)), 1), wanted)


def test_only_the_last_token_if_that_is_asked_for() -> None:
    saved = family("gpt2")
    (ids, *_), *_ = forwards(0)
    with torch.no_grad():
        wanted = saved.model(input_ids=ids, logits_to_keep=1).logits
    first, last = stages_of(saved.folder, (2, 3))
    hidden = first.forward(ids, cache=first.new_cache(), last_only=True)
    assert hidden.shape == (*ids.shape, first.hidden_size)
    assert torch.equal(last.forward(hidden, cache=last.new_cache(), last_only=True), wanted)


def test_two_batches_under_way_have_a_cache_each() -> None:
    saved = family("llama")
    stages = stages_of(saved.folder, (3, 2))
    one, other = Chain(stages), Chain(stages)
    found: list[Tensor] = []
    for ids, mask, positions in forwards(0):
        found.append(one(ids, attention_mask=mask, position_ids=positions))
        other(ids.flip(0), attention_mask=mask, position_ids=positions)
    assert same(found, whole_logits(saved.model, 0))


def test_what_arrives_is_left_as_it_was() -> None:
    first, last = stages_of(family("gemma3").folder, (2, 3))
    (ids, *_), *_ = forwards(0)
    hidden = first.forward(ids, cache=first.new_cache())
    before = hidden.clone()
    last.forward(hidden, cache=last.new_cache())
    assert torch.equal(hidden, before)


def test_a_stage_says_what_it_takes_and_gives() -> None:
    first, last = stages_of(family("llama").folder, (2, 3))
    assert (first.index, first.count, first.layers, last.layers) == (0, 2, range(2), range(2, 5))
    assert (first.is_first, first.is_last, last.is_first, last.is_last) == (True, False, False, True)
    assert (first.dtype, first.hidden_size, first.vocab_size) == (torch.float32, 32, 64)
    assert len(last.model.model.layers) == 3
