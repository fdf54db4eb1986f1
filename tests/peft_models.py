"""What tests of PEFT on dispatched models share: the maps of layers, models by them, and their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import planner

Map: TypeAlias = dict[str, Any]

IDS = torch.arange(3, 13)[None]
MAPS = {
    "two": (0, 0, 1, 1),
    "cpu": (0, "cpu", 0, "cpu"),
    "disk": (0, "disk", 0, "disk"),
    "mixed": (0, "cpu", 1, "disk"),
}
# Where each layer runs.
RUNS = {"two": (0, 0, 1, 1), "cpu": (0, 0, 0, 0), "disk": (0, 0, 0, 0), "mixed": (0, 0, 1, 0)}


def few(cases: Iterable[str], *each_time: str) -> list[Any]:
    """Some cases each time, and the others in sweeps."""
    return [name if name in each_time else pytest.param(name, marks=pytest.mark.sweep) for name in cases]


EACH_MAP = few(MAPS, "mixed")
SWEPT_MAPS = few(MAPS)
LORA: Map = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def saved(folder: Path, into: Path, config: peft.PeftConfig) -> Path:
    """An adapter that changes the answers, in files."""
    torch.manual_seed(7)
    model: Any = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(into)
    return into


def device_map(layers: tuple[Any, ...]) -> Map:
    outer = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
    return {**dict.fromkeys(outer, 0), **{f"model.layers.{i}": device for i, device in enumerate(layers)}}


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval().to(0)


def spread(folder: Path, name: str, offload: Path) -> Any:
    placed = device_map(MAPS[name])
    return AutoModelForCausalLM.from_pretrained(folder, device_map=placed, offload_folder=offload).eval()


@torch.no_grad()
def answer(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS.to(0)).logits.cpu()
    return found


def tokens(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.generate(input_ids=IDS.to(0), max_new_tokens=4, do_sample=False)
    return found.cpu()


def adapters(model: nn.Module) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def requires_adapters_beside(model: nn.Module, name: str) -> None:
    """Each adapter is real and where its layer runs."""
    found = adapters(model)
    assert found
    for path, parameter in found.items():
        layer = int(path.split(".layers.")[1].split(".")[0])
        assert not parameter.is_meta and parameter.device == torch.device(RUNS[name][layer]), path


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in planner.state_dict(model).items()}


def require_equal(found: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert found.keys() == want.keys()
    assert [name for name in want if not found[name].equal(want[name])] == []


def reloaded(model: Any, into: Path) -> dict[str, torch.Tensor]:
    model.save_pretrained(into)
    return state(AutoModelForCausalLM.from_pretrained(into))


Own: TypeAlias = Callable[[str], Map]


def auto(name: str) -> Map:
    return {}


def own(name: str) -> Map:
    placed = device_map(MAPS[name])
    return {"device_map": {f"base_model.model.{key}": device for key, device in placed.items()}}


def trained(model: Any, steps: int = 2) -> dict[str, torch.Tensor]:
    """All that is trainable, after some steps of SGD."""
    model.train()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS.to(0), labels=IDS.to(0)).loss.backward()
        optimizer.step()
    model.eval()
    return {name: p.detach().cpu() for name, p in parameters.items()}


PROMPTS: dict[str, Callable[[], peft.PeftConfig]] = {
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16
    ),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}
