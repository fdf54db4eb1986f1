"""What a plan says of the model first: its name, how its weights are stored, its layers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import planner
from planner.checkpoint.stored_format import stored_format
from planner.model.tree import ModuleTree
from planner.plans.parts import Source


class Block(nn.Module):
    def __init__(self, experts: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Talker(nn.Module):
    def __init__(self, layers: int = 3, experts: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 8)
        self.layers = nn.ModuleList(Block(experts) for _ in range(layers))


def source_of(model: object, **settings: object) -> Source:
    return planner.plan(model, **{"max_memory": {0: "1GiB", "cpu": "1GiB"}, **settings}).source  # type: ignore[arg-type]


def write(folder: Path, config: object = None, dtype: torch.dtype = torch.bfloat16) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(
        {f"layers.{number}.weight": torch.zeros(4, 4, dtype=dtype) for number in range(5)},
        folder / "model.safetensors",
    )
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_live_model_has_the_name_of_its_class_and_the_type_that_most_bytes_have() -> None:
    model = Talker().bfloat16()
    model.norm = nn.LayerNorm(8)
    source = source_of(model)
    assert (source.name, source.format, source.layers) == ("Talker", "bfloat16", 3)
    assert source_of(ModuleTree.from_module(model)) == source


def test_layers_are_not_experts_and_a_model_may_have_none() -> None:
    assert source_of(Talker(layers=2, experts=16)).layers == 2
    assert source_of(Block()).layers == 0
    assert source_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))).layers == 3


def test_a_checkpoint_has_the_name_of_its_folder_wherever_it_is_asked_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "models" / "llama-70b")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    asked: list[object] = ["llama-70b", "./llama-70b/", folder, "../link", "llama-70b/model.safetensors"]
    texts = {planner.plan(each, max_memory={0: "1GiB"}).to_json(provenance=False) for each in asked}  # type: ignore[arg-type]
    monkeypatch.chdir(folder)
    texts.add(planner.plan(os.curdir, max_memory={0: "1GiB"}).to_json(provenance=False))
    assert len(texts) == 1
    source = source_of(folder)
    assert (source.name, source.format, source.layers) == ("llama-70b", "bfloat16", 5)


def test_a_file_with_a_name_of_its_own_keeps_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "unet")
    (folder / "model.safetensors").rename(folder / "flux1-dev.safetensors")
    assert source_of(folder / "flux1-dev.safetensors").name == "flux1-dev"
    assert source_of(folder).name == "unet"


def test_a_snapshot_has_the_name_of_its_repository(tmp_path: Path) -> None:
    store = tmp_path / "models--org--tiny-llama"
    write(store / "snapshots" / "0a1b2c")
    assert source_of(store).name == "org/tiny-llama"
    assert source_of(store / "snapshots" / "0a1b2c").name == "org/tiny-llama"


def test_a_dtype_that_weights_will_be_loaded_as_is_their_format(tmp_path: Path) -> None:
    assert source_of(Talker(), dtype="float16").format == "float16"
    assert source_of(write(tmp_path / "plain"), dtype="float32").format == "float32"
    quantised = write(
        tmp_path / "gptq", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, torch.int32
    )
    assert source_of(quantised, dtype="float32").format == "gptq 4-bit"


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"load_in_4bit": True}, "fp4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, "int8"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq 4-bit"),
        ({"quant_method": "awq", "w_bit": 4}, "awq 4-bit"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            "compressed-tensors 4-bit",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
        ),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3}}}, "hqq 3-bit"),
        ({"quant_method": "quanto", "weights": "int4"}, "quanto int4"),
        ({"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao"),
        ({"quant_method": "auto_round", "bits": 2}, "auto-round 2-bit"),
        ({"quant_method": "new"}, "new"),
        ({"quant_method": 7, "config_groups": [1], "bits": "x"}, "7"),
    ],
)
def test_a_quantiser_is_named_as_people_do(config: dict[str, object], word: str) -> None:
    assert stored_format([("I32", 10)], config) == word


def test_nothing_is_said_of_a_model_without_tensors() -> None:
    assert stored_format([], {}) == ""
    assert source_of(nn.Identity()).format == ""
