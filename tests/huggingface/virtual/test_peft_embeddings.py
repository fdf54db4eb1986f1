"""Prompts, and adapters of embeddings that are offloaded: every answer, and every adapter, is that of the undispatched model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from peft_models import (
    EACH_MAP,
    LORA,
    MAPS,
    PROMPTS,
    answer,
    device_map,
    few,
    plain,
    reloaded,
    require_equal,
    spread,
    tokens,
    trained,
)

pytestmark = pytest.mark.usefixtures("current_folder")

# ---- prompts


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", few(PROMPTS, "prompt"))
@pytest.mark.parametrize("name", EACH_MAP)
def test_prompts_are_trained_saved_and_loaded(name: str, kind: str, folder: Path, tmp_path: Path) -> None:
    found, models = [], []
    for base in (plain(folder), spread(folder, name, tmp_path / "o")):
        torch.manual_seed(1)
        models.append(peft.get_peft_model(base, PROMPTS[kind]()))
        found.append(trained(models[-1]))
    require_equal(found[1], found[0])
    assert answer(models[1]).equal(answer(models[0])) and tokens(models[1]).equal(tokens(models[0]))
    models[0].save_pretrained(tmp_path / "prompt")
    want = peft.PeftModel.from_pretrained(plain(folder), tmp_path / "prompt")
    model = peft.PeftModel.from_pretrained(spread(folder, name, tmp_path / "o2"), tmp_path / "prompt")
    assert answer(model).equal(answer(want)) and tokens(model).equal(tokens(want))


# ---- embeddings that are offloaded

EMBEDDINGS: dict[str, Callable[[], peft.PeftConfig]] = {
    **PROMPTS,
    "lora": lambda: peft.LoraConfig(**{**LORA, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "whole": lambda: peft.LoraConfig(**LORA, modules_to_save=["embed_tokens", "lm_head"]),
    "tokens": lambda: peft.LoraConfig(**LORA, trainable_token_indices=[3, 5]),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", few(EMBEDDINGS, "whole"))
@pytest.mark.parametrize("place", few(["cpu", "disk"], "disk"))
def test_embeddings_are_offloaded(place: str, kind: str, folder: Path, tmp_path: Path) -> None:
    """What PEFT makes beside them, of them, and saves of them."""
    placed = {**device_map(MAPS["mixed"]), "model.embed_tokens": place, "lm_head": place}

    def loaded() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder, device_map=placed, offload_folder=tmp_path / "o"
        ).eval()

    found, models = [], []
    for base in (plain(folder), loaded()):
        torch.manual_seed(1)
        models.append(peft.get_peft_model(base, EMBEDDINGS[kind]()))
        found.append(trained(models[-1]))
    require_equal(found[1], found[0])
    want = answer(models[0])
    assert answer(models[1]).equal(want)
    models[1].save_pretrained(tmp_path / "adapter")
    assert answer(peft.PeftModel.from_pretrained(loaded(), tmp_path / "adapter")).equal(want)
    if kind not in PROMPTS:
        want_merged, merged = (model.merge_and_unload() for model in models)
        assert answer(merged).equal(answer(want_merged))
        require_equal(reloaded(merged, tmp_path / "s"), reloaded(want_merged, tmp_path / "s2"))
