"""Tiny models of transformers in folders of their own, as `from_pretrained` reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import nn

from tiny_models import LAYERS, SIZES, SPECIAL, TINY

__all__ = ["MODELS", "saved_in"]


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
