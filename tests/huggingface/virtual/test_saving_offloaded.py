"""A model that was loaded over devices, CPU and disk is saved like one in memory, also over the very files that it streams from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

import planner
from stored_models import device_map, inputs_of, reference, stored
from tiny_models import built

MAPS: dict[str, Any] = {
    "disk": lambda number: (0, "disk")[number % 2],
    "mixed": lambda number: (0, "cpu", 1, "disk")[number % 4],
}


@pytest.fixture(autouse=True)
def _ours() -> Iterator[None]:
    with warnings.catch_warnings(), planner.integrate():
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
        yield


def checkpoint(name: str, folder: Path) -> Path:
    if name != "llava":
        return stored(name, folder)
    model: Any = built(name)
    model.save_pretrained(folder)
    return folder


def loaded(folder: Path, layers: Any, offload_folder: Path) -> Any:
    plain = reference(folder)
    return type(plain).from_pretrained(
        folder, device_map=device_map(plain, layers, 0), offload_folder=offload_folder
    )


@torch.no_grad()
def answer(model: Any, name: str, device: Any = 0) -> torch.Tensor:
    given = {key: tensor.to(device) for key, tensor in inputs_of(name).items()}
    logits: torch.Tensor = model(**given).logits.cpu()
    return logits


@pytest.mark.parametrize(
    ("name", "where", "size"),
    [
        ("llama", "disk", "5GB"),
        ("llama", "mixed", "60KB"),
        ("mixtral", "disk", "60KB"),
        ("mixtral", "mixed", "5GB"),
        ("llava", "disk", "60KB"),
        ("llava", "mixed", "5GB"),
    ],
)
def test_a_model_is_saved_into_the_folder_that_it_streams_from(
    name: str, where: str, size: str, tmp_path: Path
) -> None:
    folder = checkpoint(name, tmp_path / "model")
    before = reference(folder)
    wanted = answer(before.to(0), name)
    model = loaded(folder, MAPS[where], tmp_path / "offload")
    model.save_pretrained(folder, max_shard_size=size)
    assert answer(model, name).equal(wanted)
    state, again = before.cpu().state_dict(), reference(folder).state_dict()
    assert state.keys() == again.keys() and all(state[key].equal(again[key]) for key in state)


def test_a_class_that_cannot_save_itself_is_saved_one_tensor_at_a_time(tmp_path: Path) -> None:
    folder = checkpoint("llama", tmp_path / "model")
    model = loaded(folder, MAPS["mixed"], tmp_path / "offload")
    (tmp_path / "saved").mkdir()
    state = planner.state_dict(model)
    files = {
        name: f"model-{number:05}-of-{len(state):05}.safetensors" for number, name in enumerate(state, 1)
    }
    for name, file in files.items():
        save_file({name: state[name].contiguous()}, tmp_path / "saved" / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (tmp_path / "saved" / "model.safetensors.index.json").write_text(json.dumps(index))
    model.config.save_pretrained(tmp_path / "saved")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    assert answer(again.to(0), "llama").equal(answer(reference(folder).to(0), "llama"))


def test_training_an_offloaded_weight_is_an_error_at_the_first_step(tmp_path: Path) -> None:
    """accelerate trains everything else, and says nothing."""
    model = loaded(checkpoint("llama", tmp_path / "model"), MAPS["mixed"], tmp_path / "offload").train()
    ids = inputs_of("llama")["input_ids"].to(0)
    with pytest.raises(planner.OffloadError, match=r"offloaded and trainable.*requires_grad_\(False\)"):
        model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is None for parameter in model.model.layers[1].parameters())
