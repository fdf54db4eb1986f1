"""The model that is loaded and streamed on an accelerator, and who loads it; transformers and accelerate only where they are."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import planner
from tensor_files import write_file

__all__ = [
    "LARGE",
    "LEFT_OUT",
    "SMALL",
    "Sizes",
    "by_accelerate",
    "by_load_file",
    "by_planner",
    "by_transformers",
    "installed",
    "streamed_map",
    "write",
]

DeviceMap = Mapping[str, Any]
FILES = 4
DTYPE = torch.bfloat16
# Packages that are taken for not installed.
LEFT_OUT: set[str] = set()


@dataclass(frozen=True)
class Sizes:
    hidden: int
    intermediate: int
    words: int
    heads: int
    blocks: int


LARGE = Sizes(hidden=2560, intermediate=6912, words=32_000, heads=20, blocks=16)
SMALL = Sizes(hidden=128, intermediate=256, words=256, heads=4, blocks=4)


def linears(rows: int, columns: int, *names: str) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(columns, rows, bias=False) for name in names})


class Block(nn.Module):
    """A Llama's weights under their names; its tokens do not look at one another."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        hidden, inner = sizes.hidden, sizes.intermediate
        self.self_attn = linears(hidden, hidden, "q_proj", "k_proj", "v_proj", "o_proj")
        self.mlp = linears(inner, hidden, "gate_proj", "up_proj")
        self.mlp.update(linears(hidden, inner, "down_proj"))
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(hidden), nn.RMSNorm(hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attention, mlp = self.self_attn, self.mlp
        h = self.input_layernorm(x)
        x = x + attention["o_proj"](attention["q_proj"](h) * attention["k_proj"](h) + attention["v_proj"](h))
        h = self.post_attention_layernorm(x)
        mixed: torch.Tensor = mlp["down_proj"](nn.functional.silu(mlp["gate_proj"](h)) * mlp["up_proj"](h))
        return x + mixed


class Plain(nn.Module):
    """What stands in for transformers' Llama where it is not installed, and has its names."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(sizes.words, sizes.hidden)
        self.model.layers = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.model.norm = nn.RMSNorm(sizes.hidden)
        self.lm_head = nn.Linear(sizes.hidden, sizes.words, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.model.embed_tokens(ids)
        for block in self.model.layers:
            x = block(x)
        logits: torch.Tensor = self.lm_head(self.model.norm(x))
        return logits


def plain(sizes: Sizes) -> nn.Module:
    """Without values."""
    with torch.device("meta"):
        return Plain(sizes).to(DTYPE).eval().requires_grad_(False)


def installed(name: str) -> bool:
    return name not in LEFT_OUT and importlib.util.find_spec(name) is not None


def write(folder: Path, sizes: Sizes) -> int:
    """A checkpoint in a few files, with random values made on the accelerator; returns its bytes."""
    torch.manual_seed(0)
    tensors = plain(sizes).state_dict()
    names, weight_map, size_bytes = list(tensors), dict[str, str](), 0
    for number in range(FILES):
        begin, end = (len(names) * (number + step) // FILES for step in (0, 1))
        path = folder / f"model-{number + 1:05}-of-{FILES:05}.safetensors"
        values = {name: random_values(tensors[name]) for name in names[begin:end]}
        write_file(path, values, metadata={"format": "pt"})
        with path.open("rb") as file:
            os.fsync(file.fileno())
        weight_map |= dict.fromkeys(names[begin:end], path.name)
        size_bytes += path.stat().st_size
    index = {"metadata": {"total_size": size_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if installed("transformers"):
        write_config(folder, sizes)
    return size_bytes


def random_values(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim == 1:
        return torch.ones(tensor.shape, dtype=tensor.dtype)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=0).normal_(std=0.02).cpu()


def write_config(folder: Path, sizes: Sizes) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        vocab_size=sizes.words,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        num_hidden_layers=sizes.blocks,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = DTYPE
    config.save_pretrained(folder)


def streamed_map(sizes: Sizes, rest: str) -> dict[str, Any]:
    """All blocks on the CPU or on disk, and what is around them on the accelerator."""
    outer = ["model.embed_tokens", "model.norm", "lm_head"]
    if installed("transformers"):
        outer.append("model.rotary_emb")
    return {
        **dict.fromkeys(outer, 0),
        **{f"model.layers.{number}": rest for number in range(sizes.blocks)},
    }


def by_planner(folder: Path, sizes: Sizes, placed: DeviceMap, **settings: Any) -> Callable[[], nn.Module]:
    def load() -> nn.Module:
        skeleton = None if installed("transformers") else plain(sizes)
        return planner.load(folder, skeleton, dict(placed), progress=lambda done, total: None, **settings)

    return load


def by_transformers(folder: Path, placed: DeviceMap) -> Callable[[], nn.Module]:
    from transformers import AutoModelForCausalLM

    def load() -> nn.Module:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", device_map=dict(placed), offload_folder=tempfile.gettempdir()
        )
        return model

    return load


def by_accelerate(folder: Path, placed: DeviceMap, offload: Path) -> Callable[[], nn.Module]:
    """For transformers' model, of which accelerate wants the buffers that no file holds."""
    import accelerate
    from transformers import AutoConfig, AutoModelForCausalLM

    def load() -> nn.Module:
        with accelerate.init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=DTYPE)
        found: nn.Module = accelerate.load_checkpoint_and_dispatch(
            model.eval(), str(folder), device_map=dict(placed), offload_folder=str(offload)
        )
        return found

    return load


def by_load_file(folder: Path) -> Callable[[], dict[str, torch.Tensor]]:
    """Mapped pages to the accelerator, tensor by tensor, and no model."""
    from safetensors.torch import load_file

    def load() -> dict[str, torch.Tensor]:
        return {
            name: tensor.to(0)
            for path in sorted(folder.glob("*.safetensors"))
            for name, tensor in load_file(path).items()
        }

    return load
