"""What PEFT does with a dispatched base in ways of its own: cut off, in mixed models, without `BaseTuner`, around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import layer as lora_layer
from transformers import AutoModelForCausalLM

import planner
from peft_models import (
    LORA,
    MAPS,
    answer,
    device_map,
    few,
    plain,
    reloaded,
    require_equal,
    spread,
    trained,
)

pytestmark = pytest.mark.usefixtures("current_folder")


@pytest.mark.usefixtures("here")
def test_a_base_whose_adapter_was_not_loaded_to_the_end_still_runs(
    folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = spread(folder, "mixed", tmp_path / "o")
    made = 0
    before = lora_layer.Linear.__init__

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal made
        made += 1
        if made == 3:
            raise KeyboardInterrupt
        before(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(lora_layer.Linear, "__init__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            peft.PeftModel.from_pretrained(base, adapter)
    assert base.hf_device_map == device_map(MAPS["mixed"])
    answer(base)
    planner.undispatch(base)
    answer(base.to(0))


KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "replicated": lambda: peft.LoraConfig(**LORA, layer_replication=[(0, 3), (1, 4)]),
    "adaption": lambda: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=3),
    "layer_norms": lambda: peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]),
    "made_from_values": lambda: peft.DeftConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "dora": lambda: peft.LoraConfig(
        **{**LORA, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}, use_dora=True
    ),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", few(MAPS, "mixed"))
def test_kinds_that_take_ways_of_their_own(name: str, kind: str, folder: Path, tmp_path: Path) -> None:
    placed = {**device_map(MAPS[name]), "model.embed_tokens": "disk", "lm_head": "disk"}

    def loaded() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder, device_map=placed, offload_folder=tmp_path / "o"
        ).eval()

    models = []
    for base in (plain(folder), loaded()):
        torch.manual_seed(1)
        models.append(peft.get_peft_model(base, KINDS[kind]()))
    want, model = models
    require_equal(trained(model), trained(want))
    assert answer(model).equal(answer(want))
    want.save_pretrained(tmp_path / "adapter")
    assert answer(peft.PeftModel.from_pretrained(loaded(), tmp_path / "adapter")).equal(answer(want))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", few(MAPS, "mixed"))
def test_mixed_models_are_merged(name: str, folder: Path, tmp_path: Path) -> None:
    merged = []
    for base in (plain(folder), spread(folder, name, tmp_path / "o")):
        torch.manual_seed(1)
        model = peft.get_peft_model(base, peft.LoraConfig(**LORA, init_lora_weights=False), mixed=True)
        model.add_adapter("other", peft.LoHaConfig(target_modules=["k_proj"], r=4, init_weights=False))
        model.set_adapter(["default", "other"])
        merged.append(model.merge_and_unload())
    assert answer(merged[1]).equal(answer(merged[0]))
    require_equal(reloaded(merged[1], tmp_path / "s"), reloaded(merged[0], tmp_path / "s2"))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", few(MAPS, "mixed"))
def test_mixed_models_are_loaded(name: str, folder: Path, adapter: Path, tmp_path: Path) -> None:
    models = [
        peft.PeftMixedModel.from_pretrained(base, adapter)
        for base in (plain(folder), spread(folder, name, tmp_path / "o"))
    ]
    assert answer(models[1]).equal(answer(models[0]))
    assert not {"_update_offload", "get_base_model"} & vars(models[1]).keys()
    merged = [model.merge_and_unload() for model in models]
    require_equal(reloaded(merged[1], tmp_path / "s"), reloaded(merged[0], tmp_path / "s2"))


def test_what_was_dispatched_around_its_base_is_merged_and_saved(
    folder: Path, adapter: Path, tmp_path: Path
) -> None:
    """Its base has a map of its own then, as one that was dispatched before."""
    want = peft.PeftModel.from_pretrained(plain(folder), adapter).merge_and_unload()
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
    placed = {f"base_model.model.{key}": device for key, device in device_map((0, "cpu", 1, "cpu")).items()}
    planner.dispatch(model, placed)
    merged = model.merge_and_unload()
    assert merged.hf_device_map == device_map((0, "cpu", 1, "cpu"))
    assert answer(merged).equal(answer(want))
    require_equal(reloaded(merged, tmp_path / "s"), reloaded(want, tmp_path / "s2"))
