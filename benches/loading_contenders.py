"""Who loads: planner, `load_file` with `load_state_dict(assign=True)`, transformers, accelerate; and the maps that they get."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import planner
from loading_models import skeleton
from loading_turns import Spent

__all__ = [
    "bare",
    "by_accelerate",
    "by_load_file",
    "by_planner",
    "by_transformers",
    "maps",
    "quiet",
    "token_ids",
    "without_its_skeleton",
]

OUTER = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
DeviceMap = Mapping[str, Any]


def quiet() -> None:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def maps(folder: Path) -> dict[str, dict[str, Any]]:
    """All on the CPU, every second block on disk, all blocks on disk, everything on disk."""
    config = transformers.AutoConfig.from_pretrained(folder)
    layers = [f"model.layers.{number}" for number in range(config.num_hidden_layers)]
    outer = dict.fromkeys(OUTER, "cpu")
    return {
        "cpu": {"": "cpu"},
        "half on disk": {**outer, **{name: ("cpu", "disk")[n % 2] for n, name in enumerate(layers)}},
        "blocks on disk": {**outer, **dict.fromkeys(layers, "disk")},
        "all on disk": {"": "disk"},
    }


def bare(folder: Path) -> nn.Module:
    """The checkpoint's model without its weights."""
    return skeleton(transformers.AutoConfig.from_pretrained(folder))


def by_planner(folder: Path, placed: DeviceMap, **settings: Any) -> Callable[..., nn.Module]:
    def load(model: nn.Module | None = None) -> nn.Module:
        return planner.load(folder, model, placed, progress=lambda done, total: None, **settings)

    return load


def by_load_file(folder: Path) -> Callable[[nn.Module], nn.Module]:
    """What the safetensors library and torch have: everything on the CPU, as views of the files."""

    def load(model: nn.Module) -> nn.Module:
        state = {}
        for path in sorted(folder.glob("*.safetensors")):
            state.update(load_file(path))
        model.load_state_dict(state, assign=True)
        return model

    return load


def by_transformers(folder: Path, placed: DeviceMap) -> Callable[[], nn.Module]:
    def load() -> nn.Module:
        model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", device_map=dict(placed), offload_folder=tempfile.gettempdir()
        )
        return model

    return load


def by_accelerate(folder: Path, placed: DeviceMap) -> Callable[[nn.Module], nn.Module]:
    def load(model: nn.Module) -> nn.Module:
        with tempfile.TemporaryDirectory() as offload:
            found: nn.Module = accelerate.load_checkpoint_and_dispatch(
                model, str(folder), device_map=dict(placed), offload_folder=offload
            )
            return found

    return load


def without_its_skeleton(load: Callable[[], nn.Module], cls: type[nn.Module]) -> Callable[[], Spent]:
    """A turn of a contender that makes its own skeleton, less what the model's class takes for that."""

    def turn() -> Spent:
        with constructing(cls) as made:
            start_s, processor_s = time.perf_counter(), time.process_time()
            model = load()
            wall_s = time.perf_counter() - start_s - sum(each.wall_s for each in made)
            spent_s = time.process_time() - processor_s - sum(each.processor_s for each in made)
            del model
            return Spent(wall_s, spent_s)

    return turn


@contextlib.contextmanager
def constructing(cls: Any) -> Iterator[list[Spent]]:
    """What each construction of a class takes."""
    original, made = cls.__init__, list[Spent]()

    def timed(self: Any, *args: Any, **kwargs: Any) -> None:
        start_s, processor_s = time.perf_counter(), time.process_time()
        original(self, *args, **kwargs)
        made.append(Spent(time.perf_counter() - start_s, time.process_time() - processor_s))

    cls.__init__ = timed
    try:
        yield made
    finally:
        cls.__init__ = original


def token_ids(count: int) -> torch.Tensor:
    return torch.arange(3, 3 + count)[None]
