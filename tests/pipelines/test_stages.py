"""Stages one after the other compute what the whole model does, bit for bit."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from stage_models import Chain, family, stages_of


@pytest.mark.parametrize("counts", [(1, 4), (2, 1, 2)], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3", "deepseek_v3"])
def test_stages_give_the_logits_of_the_whole_model(name: str, counts: tuple[int, ...]) -> None:
    saved = family(name)
    chain = Chain(stages_of(saved.folder, counts))
    cache = tf.DynamicCache(config=saved.model.config)
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(1))
    for _ in range(4):
        with torch.no_grad():
            wanted = saved.model(input_ids=ids, past_key_values=cache).logits
        found = chain(ids)
        assert torch.equal(found, wanted)
        ids = wanted[:, -1:].argmax(-1)
