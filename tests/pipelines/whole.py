"""Whole models in one process, beside which pipelines are held."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor

from pipelines.stage_models import family

__all__ = ["LEFT_PADDED", "WORDS", "Whole", "saved"]

WORDS = 60

LEFT_PADDED: dict[str, Any] = {
    "ids": [[0, 0, 0, 11, 23, 5, 42], [9, 31, 7, 18, 50, 3, 26]],
    "attention_mask": [[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]],
}


@dataclass(frozen=True)
class Whole:
    """A saved model.

    Args:
        folder: where it lies.
        model: the whole of it, with the attention that transformers chooses.
    """

    folder: Path
    model: Any

    def tokens(self, call: dict[str, Any]) -> Tensor:
        """What transformers' own ``generate`` gives for a call of a pipeline."""
        asked = dict(call)
        ids = torch.tensor(asked.pop("ids"))
        mask = torch.tensor(asked.pop("attention_mask", torch.ones_like(ids).tolist()))
        seed = asked.pop("seed", None)
        if seed is not None:
            torch.manual_seed(seed)
        how = {"do_sample": False, **({"top_k": 0, "top_p": 1.0} if asked.get("do_sample") else {}), **asked}
        with torch.no_grad(), torch.random.fork_rng(enabled=False):
            found: Tensor = self.model.generate(ids, attention_mask=mask, **how)
        return found

    def logits(self, ids: Tensor) -> Tensor:
        """Of one forward, by the kernels that a process with one thread runs."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.no_grad():
                found: Tensor = self.model(ids, attention_mask=torch.ones_like(ids)).logits
        finally:
            torch.set_num_threads(threads)
        return found


@functools.cache
def saved(name: str) -> Whole:
    folder = family(name).folder
    return Whole(folder, tf.AutoModelForCausalLM.from_pretrained(folder).eval())
