"""Checkpoints without data: true configurations, indices and headers, and holes where the weights would be."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Tensor = tuple[str, list[int], int]
"""Element type, shape, bytes."""

LLAMA_70B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}


def bf16(*shape: int) -> Tensor:
    """A tensor of two bytes for each element."""
    count = 2
    for size in shape:
        count *= size
    return "BF16", list(shape), count


def llama_tensors(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of a Llama by name."""
    wide, inner, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    narrow = wide // config["num_attention_heads"] * config["num_key_value_heads"]
    tensors = {"model.embed_tokens.weight": bf16(words, wide)}
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        tensors |= {
            f"{block}.input_layernorm.weight": bf16(wide),
            f"{block}.mlp.down_proj.weight": bf16(wide, inner),
            f"{block}.mlp.gate_proj.weight": bf16(inner, wide),
            f"{block}.mlp.up_proj.weight": bf16(inner, wide),
            f"{block}.post_attention_layernorm.weight": bf16(wide),
            f"{block}.self_attn.k_proj.weight": bf16(narrow, wide),
            f"{block}.self_attn.o_proj.weight": bf16(wide, wide),
            f"{block}.self_attn.q_proj.weight": bf16(wide, wide),
            f"{block}.self_attn.v_proj.weight": bf16(narrow, wide),
        }
    return tensors | {"model.norm.weight": bf16(wide), "lm_head.weight": bf16(words, wide)}


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file: header, and a hole as long as the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + end)


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], files: int) -> Path:
    """A checkpoint in so many files, in the order of the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate(_parts(names, files)):
        name = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        write_file(folder / name, {key: tensors[key] for key in part})
        weight_map.update(dict.fromkeys(part, name))
    total = sum(size for _, _, size in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _parts(names: Sequence[str], count: int) -> list[Sequence[str]]:
    edges = [len(names) * number // count for number in range(count + 1)]
    return [names[start:end] for start, end in itertools.pairwise(edges)]
