"""Adapters that are merged, taken off, combined and swapped: every answer, and every adapter, is that of the undispatched model."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import planner
from peft_models import (
    EACH_MAP,
    LORA,
    MAPS,
    SWEPT_MAPS,
    Map,
    answer,
    device_map,
    few,
    own,
    plain,
    reloaded,
    require_equal,
    requires_adapters_beside,
    saved,
    spread,
    state,
    tokens,
    trained,
)
from planner.dispatching.tensors.placeholder import is_offloaded

pytestmark = pytest.mark.usefixtures("current_folder")

# ---- merging

VARIANTS: dict[str, Map] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "embedding": {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
    "whole": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": [3, 5]},
    "bias": {"bias": "lora_only", "target_modules": "all-linear"},
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("variant", few(VARIANTS, "dora"))
@pytest.mark.parametrize("name", EACH_MAP)
def test_variants_are_trained_merged_and_taken_off(
    name: str, variant: str, folder: Path, tmp_path: Path
) -> None:
    models = []
    for base in (plain(folder), spread(folder, name, tmp_path / "o")):
        torch.manual_seed(1)
        models.append(peft.get_peft_model(base, peft.LoraConfig(**{**LORA, **VARIANTS[variant]})))
    want, model = models
    assert answer(model).equal(answer(want))
    require_equal(trained(model), trained(want))
    assert answer(model).equal(answer(want))
    for each in models:
        each.merge_adapter()
    assert answer(model).equal(answer(want))
    for each in models:
        each.unmerge_adapter()
    assert answer(model).equal(answer(want))
    want, model = want.merge_and_unload(), model.merge_and_unload()
    assert answer(model).equal(answer(want)) and tokens(model).equal(tokens(want))
    require_equal(reloaded(model, tmp_path / "s"), reloaded(want, tmp_path / "s2"))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", SWEPT_MAPS)
def test_adapters_are_deleted_and_unloaded(name: str, folder: Path, adapter: Path, tmp_path: Path) -> None:
    want = answer(plain(folder))
    model = peft.get_peft_model(spread(folder, name, tmp_path / "o"), peft.LoraConfig(**LORA))
    model.load_adapter(adapter, "other")
    model.delete_adapter("default")
    model.set_adapter("other")
    assert answer(model).equal(answer(peft.PeftModel.from_pretrained(plain(folder), adapter)))
    base = model.unload()
    assert answer(base).equal(want) and tokens(base).equal(tokens(plain(folder)))
    planner.undispatch(base)
    assert not any(is_offloaded(p) for p in base.parameters())
    require_equal(state(base), state(plain(folder)))


# ---- several adapters


@pytest.mark.sweep
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", MAPS)
def test_adapters_are_combined(name: str, folder: Path, adapter: Path, tmp_path: Path) -> None:
    bases = (plain(folder), spread(folder, name, tmp_path / "o"))
    models = [
        peft.PeftModel.from_pretrained(base, adapter, adapter_name="one", **options)
        for base, options in zip(bases, ({}, own(name)), strict=True)
    ]
    for model in models:
        model.load_adapter(adapter, "two")
        for kind in ("linear", "cat"):
            model.add_weighted_adapter(["one", "two"], [0.5, 0.7], kind, combination_type=kind)
    for active in ("linear", "cat", "two"):
        for model in models:
            model.set_adapter(active)
        assert answer(models[1]).equal(answer(models[0]))
    for model in models:
        model.merge_adapter(["one"])
    assert answer(models[1]).equal(answer(models[0]))
    for model in models:
        model.unmerge_adapter()
    assert answer(models[1]).equal(answer(models[0]))


@pytest.mark.sweep
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", MAPS)
def test_adapters_are_swapped(name: str, folder: Path, adapter: Path, tmp_path: Path) -> None:
    other = saved(folder, tmp_path / "other", peft.LoraConfig(**LORA, lora_alpha=3, init_lora_weights=False))
    want, model = plain(folder), spread(folder, name, tmp_path / "o")
    for each in (want, model):
        each.load_adapter(str(adapter), "default")
        each.load_adapter(str(other), "default", hotswap=True)
    requires_adapters_beside(model, name)
    assert answer(model).equal(answer(want))


@pytest.mark.sweep
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", MAPS)
def test_adapters_are_trained_with_layers_computed_again_in_bfloat16(
    name: str, folder: Path, tmp_path: Path
) -> None:
    options: Map = {"device_map": device_map(MAPS[name]), "offload_folder": tmp_path / "o"}
    found = []
    for base in (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(0),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options),
    ):
        torch.manual_seed(1)
        model = peft.get_peft_model(base, peft.LoraConfig(**LORA, init_lora_weights="gaussian"))
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        found.append(trained(model))
    require_equal(found[1], found[0])
    assert {tensor.dtype for tensor in found[1].values()} == {torch.float32}
