"""Tiny models of real classes as files, for tests that load them: what `save_pretrained` writes, in a few shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import planner
from tiny_models import SIZES, SPECIAL, TINY, WORDS

__all__ = [
    "MAPS",
    "STORED",
    "Checkpoints",
    "device_map",
    "inputs_of",
    "layers_of",
    "reference",
    "same_outputs",
    "stored",
]


def qwen3_moe() -> nn.Module:
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SIZES, **SPECIAL, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
        )
    )


def qwen2_vl() -> nn.Module:
    """A picture of sixteen patches becomes four words."""
    eyes = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
    }
    words = {
        **SIZES,
        **SPECIAL,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    ids = {"image_token_id": WORDS - 1, "video_token_id": WORDS - 2}
    special = {"vision_start_token_id": WORDS - 3, "vision_end_token_id": WORDS - 4}
    config = Qwen2VLConfig(vision_config=eyes, text_config=words, **ids, **special)
    return Qwen2VLForConditionalGeneration(config)


STORED: dict[str, Callable[[], nn.Module]] = {
    "llama": TINY["llama"].make,
    "gpt2": TINY["gpt2"].make,
    "t5": TINY["t5"].make,
    "gemma": TINY["gemma"].make,
    "qwen2_vl": qwen2_vl,
    "mixtral": TINY["mixtral"].make,
    "qwen3_moe": qwen3_moe,
}


def stored(name: str, folder: Path, *, dtype: torch.dtype = torch.float32, shards: int = 3) -> Path:
    """A checkpoint with random weights, as `save_pretrained` writes it; the class is the one that its config names."""
    torch.manual_seed(0)
    model: Any = STORED[name]().eval().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # no weight stays zero or one: else a wrong layer would not show
            parameter.add_(torch.randn_like(parameter) * 0.05)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    model.save_pretrained(folder, max_shard_size=f"{size // shards // 1000 + 1}KB")
    return folder


def reference(folder: Path, **settings: Any) -> PreTrainedModel:
    """The undispatched model of the same files."""
    config = transformers.AutoConfig.from_pretrained(folder)
    (class_name,) = config.architectures
    model: PreTrainedModel = getattr(transformers, class_name).from_pretrained(
        folder, dtype="auto", **settings
    )
    return model.eval()


def inputs_of(name: str, *, with_picture: bool = True) -> dict[str, torch.Tensor]:
    """Arguments of a forward on the CPU."""
    if name in TINY:
        return TINY[name].inputs("cpu")
    ids = torch.arange(3, 13)[None]
    if name != "qwen2_vl" or not with_picture:
        return {"input_ids": ids}
    ids = torch.cat([torch.full((1, 4), WORDS - 1), ids], dim=1)
    return {
        "input_ids": ids,
        "pixel_values": torch.linspace(-1, 1, 16 * 96).sin().reshape(16, 96),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (ids == WORDS - 1).int(),
    }


def layers_of(model: nn.Module) -> list[str]:
    """Names of the repeated layers, in order."""
    return [
        f"{name}.{index}"
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and is_outermost(name)
        for index in range(len(module))
    ]


def is_outermost(name: str) -> bool:
    """Whether no part of the name is a number: no list in a layer of another list."""
    return not any(part.isdigit() for part in name.split("."))


def device_map(model: nn.Module, layers: Callable[[int], Any], outer: Any) -> dict[str, Any]:
    """Each layer where `layers` says by its number, and every module that holds no layer at `outer`."""
    names = layers_of(model)
    found = {name: layers(number) for number, name in enumerate(names)}

    def place(prefix: str, module: nn.Module) -> None:
        for local, child in module.named_children():
            name = f"{prefix}{local}"
            if name in found:
                continue
            if any(layer.startswith(f"{name}.") for layer in names):
                place(f"{name}.", child)
            else:
                found[name] = outer

    place("", model)
    return found


def single_tensors(model: nn.Module) -> dict[str, Any]:
    """One weight of each second layer and one of what surrounds them, each named by itself."""
    names = layers_of(model)
    weights = [name for name, tensor in model.named_parameters() if tensor.dim() == 2]
    inner = [next(name for name in weights if name.startswith(f"{layer}.")) for layer in names[::2]]
    return {"": "cpu", **dict.fromkeys(inner, "disk")}


MAPS: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    "cpu": lambda model: {"": "cpu"},
    "half": lambda model: device_map(
        model, lambda number: "disk" if number < len(layers_of(model)) // 2 else "cpu", "cpu"
    ),
    "alternating": lambda model: device_map(model, lambda number: ("cpu", "disk")[number % 2], "cpu"),
    "all_disk": lambda model: {"": "disk"},
    "surroundings": lambda model: device_map(model, lambda number: "cpu", "disk"),
    "single_tensors": single_tensors,
}


class Checkpoints:
    """Checkpoints and their undispatched models, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: dict[str, PreTrainedModel] = {}

    def folder_of(self, name: str) -> Path:
        folder = self.folder / name
        return folder if folder.exists() else stored(name, folder)

    def plain(self, name: str) -> PreTrainedModel:
        if name not in self.models:
            self.models[name] = reference(self.folder_of(name))
        return self.models[name]

    def loaded(self, name: str, layout: str, **settings: Any) -> Any:
        return planner.load(self.folder_of(name), plan=MAPS[layout](self.plain(name)), **settings)


def same_outputs(found: nn.Module, expected: nn.Module, name: str, times: int = 2) -> None:
    """More than one forward: the first learns the order, later ones read ahead in it."""
    given = inputs_of(name)
    with torch.no_grad():
        want = expected(**given).logits
        for number in range(times):
            assert found(**given).logits.equal(want), f"forward {number}"
