"""Parts of blocks that keep nothing: the MLP, or the experts of a mixture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import planner
from planner.model.blocks import Blocks
from planner.model.layout import Layout
from planner.model.parts import stateless_parts
from planner.model.tree import ModuleTree

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 128,
}
MIXTURE: dict[str, Any] = {**SIZES, "moe_intermediate_size": 64}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}
CASES = {
    "llama": (SIZES, ["model.layers.0.mlp", "model.layers.1.mlp"]),
    "mixtral": (
        {**SIZES, "num_local_experts": 4},
        ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"],
    ),
    "qwen3_moe": (
        {**MIXTURE, "num_experts": 8},
        ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"],
    ),
    "gpt_oss": (
        {**SIZES, "num_local_experts": 4, "head_dim": 16},
        ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"],
    ),
    "deepseek_v3": (
        {**MIXTURE, **LATENT, "n_routed_experts": 8, "first_k_dense_replace": 1},
        ["model.layers.0.mlp", "model.layers.1.mlp.experts"],
    ),
    "gpt2": (
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128},
        ["transformer.h.0.mlp", "transformer.h.1.mlp"],
    ),
    "mamba": ({"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128}, []),
    "bert": (
        {**SIZES, "is_decoder": True},
        [
            f"bert.encoder.layer.{layer}.{part}"
            for layer in (0, 1)
            for part in ("intermediate", "output.dense")
        ],
    ),
}


def parts_of(model: nn.Module) -> tuple[str, ...]:
    classes = sorted(getattr(model, "_no_split_modules", None) or [])
    return stateless_parts(Blocks(Layout(ModuleTree.from_module(model), no_split=classes)))


@pytest.mark.parametrize("family", CASES)
def test_parts_are_the_mlp_or_the_experts(family: str) -> None:
    sizes, expected = CASES[family]
    config = transformers.AutoConfig.for_model(family, **sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert list(parts_of(model)) == expected


def test_what_lists_hold_counts_as_the_blocks_own() -> None:
    """T5 has its attention and its MLP in one list."""
    config = transformers.T5Config(d_model=64, d_ff=256, num_layers=1, num_heads=4, vocab_size=128, d_kv=16)
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(config)
    found = parts_of(model)
    assert [part.rpartition(".layer.")[0] for part in found] == ["encoder.block.0", "decoder.block.0"]


class Block(nn.Module):
    def __init__(self, share: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.mlp = nn.Linear(share, share, bias=False)
        self.gate = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(x)


class Net(nn.Module):
    _no_split_modules = ("Block",)

    def __init__(self, share: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(share)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](x)


@pytest.mark.parametrize(
    ("share", "expected"), [(1, ()), (8, ()), (9, ("blocks.0.mlp",)), (90, ("blocks.0.mlp",))]
)
def test_small_parts_stay(share: int, expected: tuple[str, ...]) -> None:
    block = Block(share)
    whole = sum(each.nbytes for each in block.parameters())
    assert (block.mlp.weight.nbytes * 5 >= whole) == bool(expected)
    assert parts_of(Net(share)) == expected


def test_a_block_without_state_has_none() -> None:
    class Plain(nn.Sequential):
        pass

    net = nn.Sequential(Plain(nn.Linear(8, 8), nn.Linear(8, 8)))
    net._no_split_modules = ("Plain",)  # type: ignore[assignment]
    assert parts_of(net) == ()


def test_a_plan_in_parts_keeps_attention_where_whole_blocks_would_not_fit() -> None:
    """Room for all attention and one MLP: in whole layers two of them would be offloaded."""
    config = transformers.LlamaConfig(**SIZES | {"num_hidden_layers": 4, "intermediate_size": 960})
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    layer = model.model.layers[0]
    mlp = sum(each.nbytes for each in layer.mlp.parameters())
    total = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    budgets = {0: total - 2 * mlp, "cpu": total}
    parts = planner.plan(model, max_memory=budgets, granularity="part")
    whole = planner.plan(model, max_memory=budgets)
    offloaded = [name for name, device in parts.device_map.items() if device == "cpu"]
    assert offloaded
    assert all(name.endswith(".mlp") for name in offloaded)
    assert parts.offloaded_bytes["cpu"] <= whole.offloaded_bytes["cpu"]
    assert planner.is_valid(planner.check(model, parts.device_map, max_memory=budgets))


def test_attention_that_is_a_block_of_its_own_stays_whole() -> None:
    """A constraint names it, and its layer is taken apart: its projections are no parts of it."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    plan = planner.plan(
        model,
        max_memory={0: "1MiB", "cpu": "1MiB"},
        granularity="part",
        forbid={"*.self_attn": ("cpu",)},
    )
    assert "model.layers.0.self_attn" in plan.block_bytes
    assert "model.layers.0.self_attn.q_proj" not in plan.block_bytes
