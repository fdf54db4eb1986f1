"""A dispatch of accelerate's is undone, too: every weight comes back, wherever it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import planner
from planner.errors import PlanMismatchError
from stored_models import inputs_of, reference, stored
from tiny_models import mapped

LAYERS: dict[str, tuple[int | str, ...]] = {
    "two": (0, 0, 1, 1),
    "cpu": (0, "cpu", 0, "cpu"),
    "mixed": (0, "cpu", 1, "disk"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored("llama", tmp_path_factory.mktemp("llama"))


def loaded(folder: Path, where: str, offload_folder: Path) -> Any:
    device_map = mapped("llama", LAYERS[where])
    model = LlamaForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=offload_folder)
    assert not isinstance(model._hf_hook, planner.AlignDevicesHook)
    return model


@pytest.mark.parametrize("where", LAYERS)
def test_everything_comes_to_the_cpu(where: str, folder: Path, tmp_path: Path) -> None:
    model = planner.undispatch(loaded(folder, where, tmp_path))
    plain, named = reference(folder), dict(model.named_parameters())
    assert not any("_hf_hook" in vars(module) or "forward" in vars(module) for module in model.modules())
    assert not hasattr(model, "hf_device_map") and not {"to", "cuda"} & vars(model).keys()
    for name, each in plain.named_parameters():
        assert each.equal(named[name]) and each.requires_grad and type(named[name]) is torch.nn.Parameter
    with torch.no_grad():
        assert model(**inputs_of("llama")).logits.equal(plain(**inputs_of("llama")).logits)
    with pytest.raises(PlanMismatchError, match="not dispatched"):
        planner.undispatch(model)
    planner.dispatch(model, mapped("llama", (0, "cpu", 1, 1)))


def test_what_cannot_be_read_leaves_the_model_as_it_was(folder: Path, tmp_path: Path) -> None:
    model = loaded(folder, "mixed", tmp_path)
    hook = model.model.layers[3].mlp.up_proj._hf_hook
    weights, hook.weights_map = hook.weights_map, {}
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    with pytest.raises(planner.OffloadError, match=r"layers\.3\.mlp\.up_proj\.weight"):
        planner.undispatch(model)
    assert before == {name: id(tensor) for name, tensor in model.named_parameters()}
    hook.weights_map = weights
    with torch.no_grad():
        wanted = reference(folder).to(0)(input_ids=inputs_of("llama")["input_ids"].to(0)).logits
        assert model(input_ids=inputs_of("llama")["input_ids"].to(0)).logits.equal(wanted)
