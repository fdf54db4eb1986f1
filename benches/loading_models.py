"""Checkpoints to be loaded, with random weights: written once, and left where they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, MixtralConfig, PreTrainedConfig

__all__ = ["LARGE", "MANY_TENSORS", "QUICK", "Written", "skeleton", "write_all"]

MANY_TENSORS = (3_000, 12_000)
FILES_OF_MANY_TENSORS = 10
TENSORS_OF_A_BLOCK = 9


@dataclass(frozen=True)
class Sizes:
    """How large the models are: a Llama of 14 blocks, and one layer of 8 experts after another."""

    hidden: int
    intermediate: int
    words: int
    heads: int
    blocks: int
    expert_hidden: int
    expert_intermediate: int
    expert_layers: int

    def llama(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            vocab_size=self.words,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            num_hidden_layers=self.blocks,
        )

    def mixtral(self) -> MixtralConfig:
        return MixtralConfig(
            hidden_size=self.expert_hidden,
            intermediate_size=self.expert_intermediate,
            vocab_size=1_000,
            num_attention_heads=8,
            num_key_value_heads=8,
            num_hidden_layers=self.expert_layers,
            num_local_experts=8,
        )


LARGE = Sizes(2560, 6912, 32_000, 20, 14, 1024, 2688, 4)
QUICK = Sizes(640, 1728, 8_000, 5, 14, 256, 640, 4)


@dataclass(frozen=True)
class Written:
    """Where the models lie."""

    folder: Path

    @property
    def in_few_files(self) -> Path:
        return self.folder

    @property
    def in_many_files(self) -> Path:
        return self.folder / "in_100_files"

    @property
    def experts(self) -> Path:
        return self.folder / "experts"

    def of_tensors(self, count: int) -> Path:
        return self.folder / f"of_{count}_tensors"


def write_all(folder: Path, sizes: Sizes) -> Written:
    """The Llama in 4 and in 100 files, a Mixtral as its repository has it, and Llamas of many small tensors.

    What is there already stays as it is.
    """
    written = Written(folder)
    write(written.in_few_files, sizes.llama(), 4)
    write(written.in_many_files, sizes.llama(), 100)
    write(written.experts, sizes.mixtral(), 2)
    for count in MANY_TENSORS:
        blocks = (count - 3) // TENSORS_OF_A_BLOCK
        config = LlamaConfig(
            hidden_size=16,
            intermediate_size=16,
            vocab_size=16,
            num_attention_heads=1,
            num_key_value_heads=1,
            num_hidden_layers=blocks,
        )
        write(written.of_tensors(count), config, FILES_OF_MANY_TENSORS)
    return written


def write(folder: Path, config: PreTrainedConfig, files: int) -> None:
    """A checkpoint in bfloat16; its configuration is written last, and says that it is whole."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shapes = dict(stored_shapes(skeleton(config)))
    weight_map = {}
    torch.manual_seed(0)
    for number, names in enumerate(shares(shapes, files), start=1):
        file = f"model-{number:05}-of-{files:05}.safetensors"
        weights = {name: random_weight(name, shapes[name]) for name in names}
        save_file(weights, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.architectures = [type(skeleton(config)).__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)


def skeleton(config: PreTrainedConfig) -> nn.Module:
    """The configuration's model in bfloat16: weights on meta, buffers that no file holds real."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval()
    return model


def stored_shapes(model: nn.Module) -> Iterator[tuple[str, torch.Size]]:
    """Names and shapes as repositories have them: each expert of a Mixtral by itself."""
    for name, tensor in model.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            yield from expert_shapes(name, tensor, ("w1", "w3"))
        elif name.endswith("experts.down_proj"):
            yield from expert_shapes(name, tensor, ("w2",))
        else:
            yield name.replace(".mlp.gate.", ".block_sparse_moe.gate."), tensor.shape


def expert_shapes(name: str, fused: torch.Tensor, parts: Sequence[str]) -> Iterator[tuple[str, torch.Size]]:
    experts = name.rpartition(".")[0].replace(".mlp.", ".block_sparse_moe.")
    for expert, whole in enumerate(fused):
        for part, share in zip(parts, whole.chunk(len(parts)), strict=True):
            yield f"{experts}.{expert}.{part}.weight", share.shape


def shares(shapes: dict[str, torch.Size], files: int) -> list[list[str]]:
    """Names in their order, so many in each file that files are about equal and none is empty."""
    total, done = sum(shape.numel() for shape in shapes.values()), 0
    found: list[list[str]] = [[]]
    for left, (name, shape) in zip(range(len(shapes), 0, -1), shapes.items(), strict=True):
        lacking = files - len(found)
        if found[-1] and lacking and (done >= total * len(found) / files or left <= lacking):
            found.append([])
        found[-1].append(name)
        done += shape.numel()
    return found


def random_weight(name: str, shape: torch.Size) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)
