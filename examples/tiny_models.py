"""Small models with random weights, saved as real ones are: so that every example runs in seconds and without a download."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

__all__ = ["llama_folder", "mixtral_folder"]


def llama_folder() -> Path:
    """The folder that the command line names, or one with a Llama of eight layers."""
    if len(sys.argv) > 1:
        return Path(sys.argv[1])
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
    )
    return _saved(LlamaForCausalLM(config))


def mixtral_folder() -> Path:
    """The folder that the command line names, or one with a Mixtral of four layers with four experts each."""
    if len(sys.argv) > 1:
        return Path(sys.argv[1])
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        vocab_size=128,
    )
    return _saved(MixtralForCausalLM(config))


def _saved(model: torch.nn.Module) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="planner-example-"))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder
