"""Tiny models of transformers in folders of their own, as `from_pretrained` reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import nn
from transformers import modeling_utils
from transformers.initialization import no_tie_weights

from tiny_models import LAYERS, SIZES, SPECIAL, TINY

__all__ = ["MODELS", "bytes_by_device", "llama", "map_of", "on_meta", "saved_in"]


def llama(layers: int = LAYERS, **said: Any) -> nn.Module:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**{**SIZES, **SPECIAL, "num_hidden_layers": layers, **said}))


# Tied heads are the usual case; T5 keeps parts in float32 when it is loaded as float16.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "tied_llama": partial(llama, tie_word_embeddings=True),
    "gpt2": TINY["gpt2"].make,
    "t5": TINY["t5"].make,
    "gemma": TINY["gemma"].make,
    "mixtral": TINY["mixtral"].make,
}


def saved_in(folder: Path, make: Callable[[], nn.Module] = llama, dtype: torch.dtype = torch.float32) -> str:
    """The folder of a model with values."""
    torch.manual_seed(0)
    model: Any = make().to(dtype)
    model.save_pretrained(folder)
    return str(folder)


def bytes_by_device(model: Any) -> dict[str, int]:
    """Bytes of each tensor, each object once, by device."""
    found: dict[str, int] = {}
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    for tensor in tensors.values():
        found[str(tensor.device)] = found.get(str(tensor.device), 0) + tensor.numel() * tensor.element_size()
    return found


def on_meta(make: Callable[[], Any]) -> Any:
    """A model as it is when `from_pretrained` asks for its map: nothing is tied."""
    with torch.device("meta"), no_tie_weights():
        return make()


def map_of(
    model: Any, device_map: Any = "auto", budgets: Mapping[Any, Any] | None = None, quantizer: Any = None
) -> dict[str, Any]:
    """What `from_pretrained` gets where it asks for the map of a model on meta."""
    found: dict[str, Any] = modeling_utils._get_device_map(model, device_map, budgets, quantizer)
    return found
