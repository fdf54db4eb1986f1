"""Llamas of a few kilobytes without values, for plans in which rooms and rates count."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


def llama(layers: int, *, tied: bool = False) -> nn.Module:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        num_hidden_layers=layers,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model: nn.Module = LlamaForCausalLM(config)
    return model


def size_of(model: nn.Module) -> int:
    """Bytes of all its tensors, each counted once."""
    return sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
