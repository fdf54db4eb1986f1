"""Whole models in one process, beside which pipelines are held."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor

import planner
from pipelines.stage_models import family
from planner.devices.machine import Machine
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import Rate

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

    def tokens(self, call: dict[str, Any], device: str = "cpu") -> Tensor:
        """What transformers' own ``generate`` gives for a call of a pipeline."""
        asked = dict(call)
        ids = torch.tensor(asked.pop("ids"))
        mask = torch.tensor(asked.pop("attention_mask", torch.ones_like(ids).tolist()))
        seed = asked.pop("seed", None)
        if seed is not None:
            torch.manual_seed(seed)
        how = {"do_sample": False, **({"top_k": 0, "top_p": 1.0} if asked.get("do_sample") else {}), **asked}
        with torch.no_grad(), torch.random.fork_rng(enabled=False):
            found: Tensor = self.model.generate(ids.to(device), attention_mask=mask.to(device), **how)
        return found

    def plan(self, strategy: Any, **settings: Any) -> planner.Plan:
        """For two cards, neither of which has room for all of it."""
        size = sum(tensor.nbytes for tensor in self.model.state_dict().values())
        return planner.plan(
            str(self.folder),
            max_memory={0: size * 5 // 8, 1: size * 5 // 8},
            strategy=strategy,
            machine=two_cards(),
            headroom=None,
            **settings,
        )

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


def two_cards() -> Machine:
    cards = [
        MachineDevice(
            id=key,
            kind="cuda",
            memory_bytes_per_s=Rate.of_user(10**9),
            flops_per_s={"float32": Rate.of_user(10**12)},
            launch_ps=Rate.of_user(1_000_000),
        )
        for key in (0, 1)
    ]
    link = Link(source=0, to=1, bytes_per_s=Rate.of_user(10**8), latency_ps=Rate.of_user(2_000_000))
    return Machine(devices=tuple(cards), links=(link,))
