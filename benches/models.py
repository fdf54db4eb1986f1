"""The models of the benchmarks: meta device, so that only their shape counts. Everything is deterministic."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["DTYPE", "Block", "ExpertLayer", "blocks", "llama_70b", "mixture_of_experts"]

DTYPE = torch.bfloat16
ON_META: Any = {"device": "meta", "dtype": DTYPE}


@contextmanager
def collector_off() -> Iterator[None]:
    """While a large model grows, the garbage collector would look through it again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def llama_70b() -> Any:
    """The real class of transformers with the shape of Llama-3-70B: 1 047 modules, 723 parameters, 131 GiB."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        num_hidden_layers=80,
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=DTYPE)


def presentable(model: nn.Module) -> nn.Module:
    """The model with the one attribute that transformers asks of its own models: no tied weights."""
    model.all_tied_weights_keys = {}  # type: ignore[assignment]
    return model


class Expert(nn.Module):
    """A gated feed-forward network with one Linear per projection, as checkpoints store it."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False, **ON_META)
        self.up_proj = nn.Linear(hidden, inner, bias=False, **ON_META)
        self.down_proj = nn.Linear(inner, hidden, bias=False, **ON_META)
        self.act_fn = nn.SiLU()


class ExpertLayer(nn.Module):
    """Latent attention and `experts` experts; the proportions are those of DeepSeek-V3."""

    def __init__(self, hidden: int, inner: int, experts: int) -> None:
        super().__init__()
        self.self_attn = nn.Module()
        for name, rows, columns in (
            ("q_a_proj", 1536, hidden),
            ("q_b_proj", 24576, 1536),
            ("kv_a_proj_with_mqa", 576, hidden),
            ("kv_b_proj", 32768, 512),
            ("o_proj", hidden, 16384),
        ):
            setattr(self.self_attn, name, nn.Linear(columns, rows, bias=False, **ON_META))
        self.mlp = nn.Module()
        self.mlp.gate = nn.Linear(hidden, experts, bias=False, **ON_META)
        self.mlp.gate.register_buffer("e_score_correction_bias", torch.empty(experts, **ON_META))
        self.mlp.experts = nn.ModuleList(Expert(hidden, inner) for _ in range(experts))
        self.mlp.shared_experts = Expert(hidden, inner)
        self.input_layernorm = nn.RMSNorm(hidden, **ON_META)
        self.post_attention_layernorm = nn.RMSNorm(hidden, **ON_META)


def mixture_of_experts(layers: int = 58, experts: int = 256) -> nn.Module:
    """58 layers of 256 experts with one Linear per projection: 75 000 modules, 45 000 parameters."""
    hidden, inner, vocabulary = 7168, 2048, 129280
    with collector_off():
        model = nn.Module()
        model.model = nn.Module()
        model.model.embed_tokens = nn.Embedding(vocabulary, hidden, **ON_META)
        model.model.layers = nn.ModuleList(ExpertLayer(hidden, inner, experts) for _ in range(layers))
        model.model.norm = nn.RMSNorm(hidden, **ON_META)
        model.lm_head = nn.Linear(hidden, vocabulary, bias=False, **ON_META)
    return presentable(model)


class Leaf(nn.Module):
    """The smallest module that can be placed: one weight of 1 KiB."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(512, **ON_META))


class Block(nn.Module):
    """Two leaves below one parent, so that a block can be split."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Leaf()
        self.second = Leaf()


def blocks(count: int) -> nn.Module:
    """`count` equal blocks in one list: 3 x `count` + 2 modules, 2 x `count` parameters of 1 KiB."""
    with collector_off():
        model = nn.Module()
        model.layers = nn.ModuleList(Block() for _ in range(count))
    return presentable(model)
