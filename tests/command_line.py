"""What tests of the command line share: a small live model, a small checkpoint, and how an answer is read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result
from torch import nn

Command = Callable[..., Result]

LAYERS = 4
HIDDEN = 8
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (16, HIDDEN),
    "mlp.up_proj": (16, HIDDEN),
    "mlp.down_proj": (HIDDEN, 16),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}
ELEMENT_BYTES = {"BF16": 2, "F32": 4}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(8, 8, bias=False, device="meta")
        self.mlp = nn.Linear(8, 24, bias=False, device="meta")


class Model(nn.Module):
    """256 bytes, four layers of 1024, 256 bytes."""

    _no_split_modules = ("Layer",)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8, bias=False, device="meta")
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.head = nn.Linear(8, 8, bias=False, device="meta")


def answer(done: Result) -> Any:
    """The one JSON object that a command printed."""
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def tensor_shapes(layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a small Llama, its head and embedding apart."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, HIDDEN)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in SHAPES.items()}
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (32, HIDDEN)}


def write_llama(folder: str | os.PathLike[str], *, dtype: str = "BF16", layers: int = LAYERS) -> Path:
    """A folder with a small Llama: one safetensors file of zeros and its config."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    header, end = {}, 0
    for name, shape in tensor_shapes(layers).items():
        start, end = end, end + math.prod(shape) * ELEMENT_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(end)
    (place / "model.safetensors").write_bytes(content)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": HIDDEN,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 32,
        "tie_word_embeddings": False,
        "dtype": {"BF16": "bfloat16", "F32": "float32"}[dtype],
    }
    (place / "config.json").write_text(json.dumps(config))
    return place


def llama_bytes(dtype: str = "BF16", layers: int = LAYERS) -> int:
    """Bytes of all of its tensors."""
    return sum(math.prod(shape) for shape in tensor_shapes(layers).values()) * ELEMENT_BYTES[dtype]
