"""Pipelines of diffusers: components in folders, planned together, each with a map of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

import planner
from checkpoint_files import Tensors, write_index, write_tensors
from planner.checker.described import model_from_sizes
from planner.checkpoint.source import open_source
from planner.plans.device_map import DeviceMap

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.0",
    "feature_extractor": [None, None],
    "requires_safety_checker": True,
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
UNET = (
    "conv_in",
    "time_embedding.linear_1",
    *(f"down_blocks.{n}.resnets.{m}.conv" for n in (0, 1) for m in (0, 1)),
    "mid_block.resnets.0.conv",
    *(f"up_blocks.{n}.resnets.{m}.conv" for n in (0, 1) for m in (0, 1)),
    "conv_norm_out",
    "conv_out",
)


def floats(*names: str, dtype: str = "F32") -> Tensors:
    size = {"F32": 4, "F16": 2}[dtype]
    return {f"{name}.weight": (dtype, [100], 100 * size) for name in names}


def component(folder: Path, tensors: Tensors, config: Mapping[str, object], stem: str) -> None:
    folder.mkdir(parents=True)
    write_tensors(folder / f"{stem}.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))


def pipeline(folder: Path, *, variant: str = "") -> Path:
    """As ``save_pretrained`` lays it out; a component's own files are those that its library gives it."""
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    for name in ("scheduler", "tokenizer"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    dtype = "F16" if variant else "F32"
    text = [f"text_model.encoder.layers.{n}.mlp.fc1" for n in (0, 1)]
    clip = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    component(folder / "text_encoder", floats(*text, dtype=dtype), clip, f"model{variant}")
    of = "diffusion_pytorch_model"
    component(folder / "unet", floats(*UNET, dtype=dtype), {"_class_name": INDEX["unet"][1]}, of + variant)
    component(
        folder / "vae",
        floats("encoder.conv_in", "decoder.conv_out", dtype=dtype),
        {"_class_name": "V"},
        of + variant,
    )
    return folder


TOTAL_BYTES = 400 * (2 + len(UNET) + 2)


def test_components_are_planned_in_the_order_in_which_they_run(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    plan = planner.plan(
        folder, max_memory={0: 3200, 1: "1MiB"}, strategy={"type": "auto", "fill": "in_order"}
    )
    assert (plan.source.name, plan.source.format, plan.source.total_bytes) == ("sd", "float32", TOTAL_BYTES)
    assert list(plan.device_map) == [
        "text_encoder",
        "unet.conv_in",
        "unet.time_embedding",
        "unet.down_blocks",
        "unet.mid_block",
        "unet.up_blocks",
        "unet.conv_norm_out",
        "unet.conv_out",
        "vae",
    ]
    sizes = {f"unet.{name}.weight": 400 for name in UNET}
    sizes |= {f"vae.{name}.weight": 400 for name in ("encoder.conv_in", "decoder.conv_out")}
    sizes |= {f"text_encoder.encoder.layers.{n}.mlp.fc1.weight": 400 for n in (0, 1)}
    findings = planner.check(model_from_sizes(sizes), plan.device_map, {0: 3200, 1: "1MiB"})
    assert not [finding for finding in findings if not finding.is_note], findings
    assert open_source(folder).tree.class_name == "StableDiffusionPipeline"


def test_each_component_has_a_map_for_its_own_loader(tmp_path: Path) -> None:
    plan = planner.plan(
        pipeline(tmp_path / "sd"),
        max_memory={0: 3200, 1: "1MiB"},
        strategy={"type": "auto", "fill": "in_order"},
    )
    unet = plan.device_map.below("unet")
    assert unet["conv_in"] == 0
    assert unet["conv_out"] == 1
    assert list(unet) == [key.removeprefix("unet.") for key in plan.device_map if key.startswith("unet.")]
    assert plan.device_map.below("vae") == {"": 1}
    with pytest.raises(KeyError):
        plan.device_map.below("scheduler")


def test_what_is_said_of_a_whole_holds_below() -> None:
    said = DeviceMap({"": 0, "unet.up": "cpu"}, {"unet.up": 0, "vae": 1})
    assert said.below("unet") == {"": 0, "up": "cpu"}
    assert said.below("unet").execution_map == {"up": 0}
    assert said.below("vae") == {"": 0}
    assert said.below("vae").execution_map == {"": 1}
    assert said.below("un") == {"": 0}, "a part of a name is no name"


def test_the_variant_counts_where_there_is_nothing_else(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd", variant=".fp16")
    plan = planner.plan(folder, max_memory={0: "1MiB"})
    assert plan.source.total_bytes == TOTAL_BYTES // 2
    assert any(
        "variant='fp16'" in note and note.startswith("text_encoder, unet, vae: ")
        for note in plan.source.notes
    )
    write_tensors(folder / "vae" / "diffusion_pytorch_model.safetensors", floats("encoder.conv_in"))
    opened = open_source(folder / "vae")
    assert opened.tree.tensor_count == 1
    assert not any("variant" in note for note in opened.notes)


def test_an_index_of_a_variant_is_followed(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.fp16-00001-of-00001.safetensors", floats("fc", dtype="F16"))
    write_index(tmp_path, {"fc.weight": "model.fp16-00001-of-00001.safetensors"}).rename(
        tmp_path / "model.safetensors.index.fp16.json"
    )
    for source in (tmp_path, tmp_path / "model.safetensors.index.fp16.json"):
        assert planner.plan(source, max_memory={0: "1MiB"}).source.total_bytes == 200


def refused(source: Path) -> str:
    with pytest.raises(planner.CheckpointError) as caught:
        planner.plan(source, max_memory={0: "1GiB"})
    return caught.value.reason


def test_several_variants_ask_which(tmp_path: Path) -> None:
    for variant in ("bf16", "int8"):
        write_tensors(tmp_path / f"model.{variant}.safetensors", floats("fc"))
    assert "holds several variants, name a file of one of them: bf16, int8" in refused(tmp_path)


@pytest.mark.parametrize("left", ["no folder", "no weights", "gguf"])
def test_a_component_without_its_weights_puts_the_sizes_in_doubt(left: str, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "pipe")
    assert not planner.plan(folder, max_memory={"cpu": "1GiB"}).source.doubts
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(folder / "vae" / "x.gguf")
    if left != "gguf":
        (folder / "vae" / "x.gguf").unlink()
    if left == "no folder":
        (folder / "vae" / "config.json").unlink()
        (folder / "vae").rmdir()
    source = planner.plan(folder, max_memory={"cpu": "1GiB"}).source
    assert source.doubts == (
        "sizes leave out vae, which model_index.json names and which has no weights here",
    )
    assert source.total_bytes == TOTAL_BYTES - 800


def test_a_component_with_pickled_weights_names_the_converter(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(
        folder / "vae" / "diffusion_pytorch_model.bin"
    )
    reason = refused(folder)
    assert "holds only pickled weights (diffusion_pytorch_model.bin)" in reason
    assert (
        f'DiffusionPipeline as P; P.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])" {folder} '
        in reason
    )


def test_a_folder_without_components_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
    assert "none of the components that model_index.json names has weights" in refused(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "a/b", "_private", "a.b"])
def test_a_component_is_a_folder_of_the_pipeline_and_nothing_else(name: str, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    component(tmp_path / "outside", floats("fc"), {}, "model")
    (folder / "model_index.json").write_text(
        json.dumps({**INDEX, name: ["diffusers", "UNet2DConditionModel"]})
    )
    assert planner.plan(folder, max_memory={0: "1GiB"}).source.total_bytes == TOTAL_BYTES


def test_a_component_that_is_a_link_out_of_the_pipeline_is_refused(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    component(tmp_path / "outside", floats("fc"), {}, "model")
    (folder / "vae").rename(tmp_path / "vae")
    (folder / "vae").symlink_to(tmp_path / "outside")
    assert "leads out of the checkpoint" in refused(folder)


def test_components_of_a_snapshot_are_links_into_its_blobs(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--sd" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    pipeline(snapshot)
    blobs = tmp_path / "models--org--sd" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.rglob("*.safetensors"))):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..", "..", "..", "blobs", str(number)))
    plan = planner.plan(snapshot, max_memory={0: "1MiB"})
    assert (plan.source.name, plan.source.total_bytes) == ("org/sd", TOTAL_BYTES)


def test_a_folder_with_a_model_of_its_own_is_that_model(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    write_tensors(folder / "model.safetensors", floats("fc"))
    assert planner.plan(folder, max_memory={0: "1MiB"}).source.total_bytes == 400
