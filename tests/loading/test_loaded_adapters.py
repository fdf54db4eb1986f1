"""PEFT on loaded models: adapters are put on, trained, saved, read again and merged as on a model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import planner
from tiny_models import built

IDS = torch.arange(3, 13)[None]


def adapted(model: Any) -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return peft.get_peft_model(model.requires_grad_(False), config)


@pytest.mark.parametrize("device_map", [{"": "cpu"}, {"": "disk"}, {"": "cpu", "model.layers.1": "disk"}])
def test_adapters_on_a_loaded_model_are_those_of_one_in_memory(
    device_map: dict[str, str], tmp_path: Path
) -> None:
    plain = built("llama").eval()
    plain.save_pretrained(tmp_path / "model")
    loaded = planner.load(tmp_path / "model", plan=device_map)
    plain, loaded = adapted(plain), adapted(loaded)
    for model in (plain, loaded):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    wanted = plain(IDS).logits
    assert loaded(IDS).logits.equal(wanted)
    loaded.save_pretrained(tmp_path / "adapter")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    again = planner.load(tmp_path / "model", plan=device_map)
    again = peft.PeftModel.from_pretrained(again, tmp_path / "adapter")
    assert again(IDS).logits.equal(wanted)
    assert loaded.merge_and_unload()(IDS).logits.equal(plain.merge_and_unload()(IDS).logits)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
