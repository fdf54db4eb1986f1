"""Where layers take more than hidden states from the one before, stages begin elsewhere; said before weights are read."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from pipelines.stage_models import Chain, forwards, save, stages_of, whole_logits
from planner.errors import PipelineError
from planner.pipelines.reading import StageWeights

TYPES = ["full", "shared", "full", "full", "shared"]


def sparse() -> tf.GlmMoeDsaForCausalLM:
    config = tf.GlmMoeDsaConfig(
        hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=64, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, q_lora_rank=16,
        kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, index_topk=3, index_head_dim=16, index_n_heads=4,
        indexer_types=TYPES,
    )  # fmt: skip
    return tf.GlmMoeDsaForCausalLM(config)


def test_layers_that_share_what_was_chosen_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        saved = save(sparse())
    chain = Chain(stages_of(saved.folder, (2, 1, 2)))
    found = [chain(ids, attention_mask=mask, position_ids=at) for ids, mask, at in forwards(2)]
    wanted = whole_logits(saved.model, 2)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    monkeypatch.setattr(StageWeights, "read_into", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(PipelineError, match="begin with layer 1 of GlmMoeDsaForCausalLM") as caught:
        stages_of(saved.folder, (1, 4))
    assert caught.value.message.endswith("begin stages with layers 0, 2, 3")
    assert (caught.value.stage, caught.value.layers) == (1, range(1, 5))
