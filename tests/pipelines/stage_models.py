"""Small models of many families in folders, and their stages run one after the other in one process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor

import tiny_families
from planner.pipelines.runs import stage_runs
from planner.pipelines.stage import Stage, prepare_stage

__all__ = ["Chain", "SavedFamily", "family", "stages_of"]

LAYERS = 5


@dataclass(frozen=True)
class SavedFamily:
    """A model of a family in a folder of several files.

    Args:
        folder: where it lies.
        model: what `from_pretrained` makes of it.
    """

    folder: Path
    model: Any


@functools.cache
def family(name: str) -> SavedFamily:
    tf.utils.logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp(prefix="stage_models_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_families.FAMILIES[name](LAYERS).save_pretrained(folder, max_shard_size="50KB")
    model = tf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return SavedFamily(folder, model)


def stages_of(folder: Path, counts: Sequence[int]) -> list[Stage]:
    runs = stage_runs(counts)
    return [prepare_stage(folder, runs, run.index, attention="eager").read() for run in runs]


class Chain:
    """Stages in one process, each with a cache."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = [(stage, stage.new_cache()) for stage in stages]

    def __call__(self, ids: Tensor, **inputs: Any) -> Tensor:
        for stage, cache in self.stages:
            ids = stage.forward(ids, cache=cache, **inputs)
        return ids
