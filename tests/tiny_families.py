"""Families that compute differently, tiny, with as many layers as one likes: for tests of recordings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

__all__ = ["FAMILIES", "family"]

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(layers: int) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=layers))


def gemma3(layers: int) -> nn.Module:
    config = Gemma3TextConfig(**SIZES, num_hidden_layers=layers, head_dim=8, sliding_window=16)
    return Gemma3ForCausalLM(config)


def qwen3_moe(layers: int) -> nn.Module:
    config = Qwen3MoeConfig(
        **SIZES,
        num_hidden_layers=layers,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    )
    return Qwen3MoeForCausalLM(config)


def deepseek_v3(layers: int) -> nn.Module:
    sizes = {**SIZES, "num_key_value_heads": 4}
    config = DeepseekV3Config(
        **sizes,
        num_hidden_layers=layers,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    return DeepseekV3ForCausalLM(config)


def gpt_oss(layers: int) -> nn.Module:
    config = GptOssConfig(
        **SIZES,
        num_hidden_layers=layers,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=16,
    )
    return GptOssForCausalLM(config)


def qwen3_next(layers: int) -> nn.Module:
    """Three layers of chunked linear attention, then one of the usual kind."""
    config = Qwen3NextConfig(
        **SIZES,
        num_hidden_layers=layers,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_conv_kernel_dim=4,
    )
    return Qwen3NextForCausalLM(config)


FAMILIES: dict[str, Callable[[int], nn.Module]] = {
    "llama": llama,
    "gemma3": gemma3,
    "qwen3_moe": qwen3_moe,
    "deepseek_v3": deepseek_v3,
    "gpt_oss": gpt_oss,
    "qwen3_next": qwen3_next,
}


def family(name: str, layers: int = 2, *, in_half: bool = False) -> Any:
    """A model of a family, without values: on the meta device."""
    with torch.device("meta"):
        model = FAMILIES[name](layers)
    model.eval()
    return model.to(torch.bfloat16) if in_half else model
