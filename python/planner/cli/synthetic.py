"""A checkpoint that holds headers and no weights: a model of 70B to plan where none is at hand."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

EXAMPLES: Final = ("llama-70b",)
"""What can be made up; each is a folder of that name."""

_LAYERS: Final = 80
_HIDDEN: Final = 8192
_INTERMEDIATE: Final = 28672
_VOCABULARY: Final = 128256
_KEY_VALUE: Final = 1024
_BYTES_PER_ELEMENT: Final = 2  # BF16

_Shape = tuple[int, ...]


def write_synthetic(folder: str | os.PathLike[str], files: int = 30) -> None:
    """Writes a folder that looks like Llama-70B: a config, an index, and files whose data is a hole.

    Args:
        folder: where; it is made if it is not there.
        files: in how many safetensors files, as even as can be.

    Cost: some hundred kilobytes of disk, where the file system knows holes.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    tensors = list(_tensors())
    edges = [len(tensors) * number // files for number in range(files + 1)]
    index: dict[str, str] = {}
    for number, (start, end) in enumerate(pairwise(edges), start=1):
        name = f"model-{number:05}-of-{files:05}.safetensors"
        part = dict(tensors[start:end])
        _write_file(place / name, part)
        index.update(dict.fromkeys(part, name))
    total_bytes = sum(_bytes(shape) for _, shape in tensors)
    words = {"metadata": {"total_size": total_bytes}, "weight_map": index}
    (place / "model.safetensors.index.json").write_text(json.dumps(words))
    (place / "config.json").write_text(json.dumps(_config()))


def _tensors() -> Iterator[tuple[str, _Shape]]:
    yield "model.embed_tokens.weight", (_VOCABULARY, _HIDDEN)
    for layer in range(_LAYERS):
        for name, shape in _LAYER.items():
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (_HIDDEN,)
    yield "lm_head.weight", (_VOCABULARY, _HIDDEN)


_LAYER: Final[dict[str, _Shape]] = {
    "self_attn.q_proj": (_HIDDEN, _HIDDEN),
    "self_attn.k_proj": (_KEY_VALUE, _HIDDEN),
    "self_attn.v_proj": (_KEY_VALUE, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _HIDDEN),
    "mlp.gate_proj": (_INTERMEDIATE, _HIDDEN),
    "mlp.up_proj": (_INTERMEDIATE, _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _INTERMEDIATE),
    "input_layernorm": (_HIDDEN,),
    "post_attention_layernorm": (_HIDDEN,),
}


def _bytes(shape: _Shape) -> int:
    return math.prod(shape) * _BYTES_PER_ELEMENT


def _write_file(path: Path, tensors: dict[str, _Shape]) -> None:
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + _bytes(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": _LAYERS,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": _VOCABULARY,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
