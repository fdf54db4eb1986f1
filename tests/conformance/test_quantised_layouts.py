"""What quantisers save beside or below a weight is counted with the weight: folders as they write them, by bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import planner
from checkpoint_files import write_tensors
from planner.checkpoint.source import open_source

BITS = {"U8": 8, "I8": 8, "F8_E4M3": 8, "BF16": 16, "F16": 16, "F32": 32, "I32": 32, "I64": 64}
RECORDED = json.loads((Path(__file__).parent / "quantised_layouts.json").read_text())

Shapes = dict[str, tuple[str, list[int]]]

PLAIN: Shapes = {
    "model.embed_tokens.weight": ("BF16", [64, 256]),
    "model.norm.weight": ("BF16", [256]),
    "lm_head.weight": ("BF16", [64, 256]),
    "model.layers.0.input_layernorm.weight": ("BF16", [256]),
    "model.layers.0.post_attention_layernorm.weight": ("BF16", [256]),
}
LINEAR = {"self_attn.q_proj": 256, "self_attn.k_proj": 128, "mlp.gate_proj": 512}
SCALARS = (
    "axis",
    "group_size",
    "nbits",
    "offload_meta",
    "packing",
    "quant_scale",
    "quant_zero",
    "shape",
    "view_as_float",
)


def of_linear(rows: int) -> dict[str, Shapes]:
    """By quantiser, what is stored of one linear module: as their documentation and their code have it."""
    return {
        "fp8 in blocks": {"weight": ("F8_E4M3", [rows, 256]), "weight_scale_inv": ("F32", [rows // 128, 2])},
        "fbgemm fp8": {
            "weight": ("F8_E4M3", [rows, 256]),
            "weight_scale": ("F32", [rows, 1]),
            "input_scale_ub": ("F32", [1]),
        },
        "compressed-tensors": {
            "weight_packed": ("I32", [rows, 32]),
            "weight_scale": ("BF16", [rows, 2]),
            "weight_zero_point": ("I32", [rows // 8, 2]),
            "weight_shape": ("I64", [2]),
        },
        "hqq": {
            "W_q": ("U8", [rows // 2, 256]),
            "scale": ("F16", [rows * 4, 1]),
            "zero": ("F16", [rows * 4, 1]),
            **{name: ("I32", [1]) for name in SCALARS},
        },
        "aqlm": {
            "codes": ("I8", [rows, 32, 1]),
            "codebooks": ("F16", [1, 256, 1, 8]),
            "scales": ("F16", [rows, 1, 1, 1]),
        },
        "eetq": {"weight": ("I8", [256, rows]), "weight_scales": ("F16", [rows])},
        "quanto": {
            "weight._data": ("I8", [rows, 256]),
            "weight._scale": ("BF16", [rows, 1]),
            "input_scale": ("BF16", []),
            "output_scale": ("BF16", []),
        },
    }


def by_hand(quantiser: str) -> Shapes:
    found = dict(PLAIN)
    for module, rows in LINEAR.items():
        for name, stored in of_linear(rows)[quantiser].items():
            found[f"model.layers.0.{module}.{name}"] = stored
    return found


def stored_bytes(shapes: Shapes) -> dict[str, int]:
    return {name: math.prod(shape) * BITS[dtype] // 8 for name, (dtype, shape) in shapes.items()}


def written(folder: Path, shapes: Shapes, config: dict[str, Any]) -> str:
    sizes = stored_bytes(shapes)
    folder.mkdir(exist_ok=True)
    write_tensors(folder / "model.safetensors", {name: (*shapes[name], sizes[name]) for name in shapes})
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1}
UNKNOWN = {"architectures": ["SomethingElse"], "model_type": "else"}


@pytest.mark.parametrize("config", [LLAMA, UNKNOWN], ids=["known", "unknown"])
@pytest.mark.parametrize("quantiser", [*RECORDED, *of_linear(128)])
@pytest.mark.parametrize("order", ["sorted", "reversed"])
def test_a_folder_has_the_bytes_of_its_files(
    quantiser: str, order: str, config: dict[str, Any], tmp_path: Path
) -> None:
    if quantiser in RECORDED:
        shapes = {name: (dtype, shape) for name, (dtype, shape) in RECORDED[quantiser]["tensors"].items()}
        told = RECORDED[quantiser]["config"]["quantization_config"]
    else:
        shapes, told = by_hand(quantiser), {"quant_method": quantiser.split()[0]}
    shapes = {name: shapes[name] for name in sorted(shapes, reverse=order == "reversed")}
    opened = open_source(written(tmp_path / "folder", shapes, {**config, "quantization_config": told}))
    assert not [note for note in opened.notes if "not known" in note or "not in the" in note]
    plan = planner.plan(opened, max_memory={0: "1GiB"}, dtype="float16")
    sizes = stored_bytes(shapes)
    module = "model.layers.0.self_attn.q_proj"
    assert plan.source.total_bytes == sum(sizes.values())
    inside = sum(size for name, size in sizes.items() if name.startswith(f"{module}."))
    one = planner.plan(
        opened, max_memory={0: "1GiB", 1: "1GiB"}, granularity="module", pin={module: 1}, dtype="float16"
    )
    assert one.source.total_bytes == sum(sizes.values())
    held = {device.id: device.used_bytes for device in one.devices}
    assert held[1] >= inside > 0


@pytest.mark.parametrize("quantiser", RECORDED)
def test_the_tensors_are_those_of_the_live_model(quantiser: str, tmp_path: Path) -> None:
    """A pin of a weight, and the map of single tensors, use names that transformers has."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    known = RECORDED[quantiser]
    opened = open_source(written(tmp_path / "folder", known["tensors"], known["config"]))
    plain = {name: value for name, value in known["config"].items() if name != "quantization_config"}
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**plain))
    saved = {name for name, _ in model.named_parameters()}
    assert set(opened.tree.uncovered([], "saved")[1]) == saved


def test_blocks_and_scales_of_experts_are_one_weight(tmp_path: Path) -> None:
    """gpt-oss as published: four bits in blocks."""
    experts = "model.layers.0.mlp.experts"
    shapes: Shapes = {
        "model.embed_tokens.weight": ("BF16", [64, 32]),
        f"{experts}.gate_up_proj_blocks": ("U8", [4, 64, 1, 16]),
        f"{experts}.gate_up_proj_scales": ("U8", [4, 64, 1]),
        f"{experts}.gate_up_proj_bias": ("BF16", [4, 64]),
        f"{experts}.down_proj_blocks": ("U8", [4, 32, 1, 16]),
        f"{experts}.down_proj_scales": ("U8", [4, 32, 1]),
        f"{experts}.down_proj_bias": ("BF16", [4, 32]),
    }
    config = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_hidden_layers": 1}
    opened = open_source(
        written(tmp_path / "folder", shapes, {**config, "quantization_config": {"quant_method": "mxfp4"}})
    )
    assert [note for note in opened.notes if "not known" in note] == []
    names = {name for name in opened.tree.uncovered([], "saved")[1] if name.startswith(experts)}
    assert names == {
        f"{experts}.{name}" for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
    }
    assert planner.plan(opened, max_memory={0: "1GiB"}).source.total_bytes == sum(
        stored_bytes(shapes).values()
    )


def test_names_below_a_tensor_are_still_refused_where_no_quantiser_was(tmp_path: Path) -> None:
    shapes: Shapes = {"fc.weight": ("U8", [3]), "fc.weight.other": ("U8", [3])}
    with pytest.raises(planner.CheckpointError, match="cannot be the name of a tensor"):
        open_source(written(tmp_path / "plain", shapes, UNKNOWN))
    assert (
        open_source(
            written(tmp_path / "other", shapes, {**UNKNOWN, "quantization_config": {}})
        ).tree.tensor_count
        == 1
    )


def test_a_bare_file_of_bitsandbytes_needs_no_configuration(tmp_path: Path) -> None:
    shapes: Shapes = {
        "fc.weight": ("U8", [32, 1]),
        "fc.weight.absmax": ("F32", [1]),
        "fc.weight.quant_map": ("F32", [16]),
    }
    file = write_tensors(
        tmp_path / "model.safetensors", {n: (*shapes[n], s) for n, s in stored_bytes(shapes).items()}
    )
    assert planner.plan(file, max_memory={0: "1GiB"}).source.total_bytes == 32 + 4 + 64


@pytest.mark.parametrize(
    "names",
    [
        ("fc.weight", "fc._data"),
        ("fc._data", "fc._shift"),
        ("fc.weight", "fc._data", "fc._scale"),
        ("fc._data", "fc._scale", "fc.inner.weight"),
        ("fc.num_blocks", "fc.num_scales", "fc.num.weight"),
    ],
)
def test_names_like_a_quantisers_of_a_module_that_has_others_stay(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    opened = open_source(written(tmp_path / "folder", {name: ("U8", [3]) for name in names}, UNKNOWN))
    assert set(opened.tree.uncovered([], "saved")[1]) == set(names)


@pytest.mark.parametrize(
    "name", ["fc._scale", "fc.SCB", "fc._weight_scale", "fc.x_blocks", "fc.weight._scale"]
)
def test_a_name_that_only_looks_like_a_quantisers_stays(name: str, tmp_path: Path) -> None:
    shapes: Shapes = {"fc.bias": ("U8", [3]), name: ("U8", [3])}
    opened = open_source(written(tmp_path / "folder", shapes, UNKNOWN))
    assert name in opened.tree.uncovered([], "saved")[1]
