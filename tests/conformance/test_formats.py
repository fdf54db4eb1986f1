"""A model planned in a format has the bytes of a folder that its quantiser writes; see benches/write_formats.py for how they came."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import planner
from checkpoint_files import write_tensors
from planner import InfeasibleError, InvalidInputError, Plan
from planner.checker.check import check, is_valid
from planner.checker.described import model_from_sizes
from planner.checkpoint.source import open_source
from planner.model.formats import format_named
from planner.model.in_format import Weights, layout_as
from planner.settings.dtypes import FORMATS, is_format

BITS = {"U8": 8, "I8": 8, "F8_E4M3": 8, "BF16": 16, "F16": 16, "F32": 32, "I32": 32}
RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "formats.json").read_text())
CASES = [(model, name) for model, row in RECORDED.items() for name in row["formats"]]
BUDGETS = {0: "1GiB", "cpu": "1GiB"}
WITHIN = 0.02


def stored_bytes(shapes: dict[str, Any]) -> dict[str, int]:
    return {name: math.prod(shape) * BITS[dtype] // 8 for name, (dtype, shape) in shapes.items()}


def folder_of(model: str, parent: Path, **config: Any) -> Path:
    """The model before it was quantised."""
    row = RECORDED[model]
    sizes = stored_bytes(row["plain"])
    parent.mkdir(exist_ok=True)
    write_tensors(parent / "model.safetensors", {name: (*row["plain"][name], sizes[name]) for name in sizes})
    (parent / "config.json").write_text(json.dumps({**row["config"], **config}))
    return parent


@pytest.mark.parametrize(("model", "name"), CASES)
def test_the_estimate_is_near_what_is_written(model: str, name: str, tmp_path: Path) -> None:
    folder = folder_of(model, tmp_path / "plain")
    plan = planner.plan(folder, max_memory=BUDGETS, dtype=name)
    written = sum(stored_bytes(RECORDED[model]["formats"][name]).values())
    assert abs(plan.source.total_bytes - written) <= WITHIN * written
    assert plan.source.total_bytes < sum(stored_bytes(RECORDED[model]["plain"]).values())
    assert any(note.startswith("sizes are an estimate of") and name in note for note in plan.source.doubts)
    sizes = layout_as(open_source(folder).tree, name).stored_sizes()
    assert sizes[""] == plan.source.total_bytes == sum(device.used_bytes for device in plan.devices)


@pytest.mark.parametrize(
    ("model", "name"), [case for case in CASES if not case[1].startswith(("gptq", "awq"))]
)
def test_what_is_kept_wide_is_what_the_quantiser_keeps(model: str, name: str, tmp_path: Path) -> None:
    """Embeddings, head, norms, router, tied tensors: each by its own bytes; and what is converted is near."""
    sizes = layout_as(open_source(folder_of(model, tmp_path / "plain")).tree, name).stored_sizes()
    wide = stored_bytes(RECORDED[model]["plain"])
    written = stored_bytes(RECORDED[model]["formats"][name])
    alike = {each for each in wide if written.get(each) == wide[each] and each in sizes}
    assert alike and {each: sizes[each] for each in alike} == {each: wide[each] for each in alike}
    # FP8Linear makes biases in torch's default type; they are loaded as they are in the files.
    others = {each for each in wide.keys() & sizes.keys() - alike if not each.endswith("bias")}
    narrow = {each for each in others if written.get(each) != wide[each]}
    assert narrow or model in ("mixtral", "qwen3_moe", "gpt_oss")
    for each in narrow:
        assert sizes[each] < wide[each]


# One for each way in which a quantiser leaves something alone.
TELLING = (
    *("LlamaForCausalLM", "GPT2LMHeadModel", "MixtralForCausalLM", "T5ForConditionalGeneration"),
    *("RemBertForMaskedLM", "LukeForMaskedLM", "MusicgenForCausalLM", "GitForCausalLM"),
    *("DeepseekV3ForCausalLM", "WhisperForConditionalGeneration", "Qwen2VLForConditionalGeneration"),
)


@pytest.mark.parametrize("name", TELLING)
def test_what_is_converted_is_what_transformers_would_replace(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls._from_config(cls.config_class())
        model.tie_weights()
    kept = [*get_keys_to_not_convert(model), *model._keep_in_fp32_modules]
    replaced = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if type(module) in (torch.nn.Linear, Conv1D) and should_convert_module(name, kept)
    }
    assert replaced == set(Weights(open_source(model).tree).converted(format_named("nf4"))) != set()


def test_a_live_model_has_the_same_bytes_as_its_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for model in ("llama", "mixtral", "gpt2"):
        folder = folder_of(model, tmp_path / model)
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            live = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        live.tie_weights()
        for name in ("nf4", "int8", "gptq-4bit-g128"):
            totals = [
                planner.plan(source, max_memory=BUDGETS, dtype=name).source.total_bytes
                for source in (folder, live)
            ]
            # Buffers that are not saved, which only a live model has.
            assert 0 <= totals[1] - totals[0] <= 512


def test_a_plan_in_a_format_is_valid_by_the_bytes_that_it_says(tmp_path: Path) -> None:
    opened = open_source(folder_of("llama", tmp_path / "plain"))
    sizes = layout_as(opened.tree, "nf4").stored_sizes()
    plan = planner.plan(opened, max_memory={0: 1_400_000, 1: 1_400_000, "cpu": "1GiB"}, dtype="nf4")
    described = model_from_sizes({name: int(sizes[name]) for name in opened.tree.uncovered([])[1]})
    budgets = {device.id: device.budget_bytes for device in plan.devices}
    assert is_valid(check(described, plan.device_map, budgets))
    assert {device.id: device.used_bytes for device in plan.devices}[0] > 0


def test_a_tensor_with_an_element_type_of_its_own_is_not_converted(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "plain")
    name = "model.layers.0.mlp.down_proj.weight"
    plan = planner.plan(folder, max_memory=BUDGETS, dtype="nf4", special_dtypes={name: "float32"})
    own = stored_bytes(RECORDED["llama"]["plain"])[name]
    sizes = layout_as(open_source(folder).tree, "nf4").stored_sizes()
    assert plan.source.total_bytes == sizes[""] - sizes[name] + 2 * own


def test_a_quantised_model_takes_no_format(tmp_path: Path) -> None:
    said = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    folder = folder_of("llama", tmp_path / "plain", **said)
    with pytest.raises(InvalidInputError, match=r"dtype nf4: the model is quantised already \(gptq 4-bit\)"):
        planner.plan(folder, max_memory=BUDGETS, dtype="nf4")
    assert planner.plan(folder, max_memory={0: "3MB", "cpu": "1GiB"}).shortfall.smaller_formats == {}


@pytest.mark.parametrize(
    ("model", "name", "why"),
    [
        ("llama", "mxfp4", "converts the experts of gpt-oss, and this model has none"),
        ("gpt2", "fp8", "converts nn.Linear and experts in one tensor, and this model has none"),
        ("gpt_oss", "fp8", "takes no experts with biases, as this model has; try mxfp4"),
    ],
)
def test_a_format_that_changes_nothing_is_refused(model: str, name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=why):
        planner.plan(folder_of(model, tmp_path / "plain"), max_memory=BUDGETS, dtype=name)


def test_a_plan_that_offloads_says_which_formats_are_smaller(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "plain")
    plan = planner.plan(folder, max_memory={0: "4MB", "cpu": "1GiB"})
    assert plan.shortfall is not None
    totals = {
        name: planner.plan(folder, max_memory=BUDGETS, dtype=name).source.total_bytes
        for name in ("fp8", "nf4")
    }
    assert plan.shortfall.smaller_formats == totals
    again = Plan.from_json(plan.to_json())
    assert again == plan and again.shortfall == plan.shortfall
    for copied in (copy.deepcopy(plan.shortfall), pickle.loads(pickle.dumps(plan.shortfall))):
        assert copied == plan.shortfall and type(copied.smaller_formats) is dict
    eight = planner.plan(folder, max_memory={0: "3MB", "cpu": "1GiB"}, dtype="fp8")
    assert eight.shortfall is not None and list(eight.shortfall.smaller_formats) == ["nf4"]


def test_a_format_that_would_be_refused_is_no_smaller_format(tmp_path: Path) -> None:
    """A model that is planned wide is larger than its files, and so than a format that changes nothing of them."""
    folder = folder_of("gpt2", tmp_path / "plain")
    plan = planner.plan(folder, max_memory={0: "1MB", "cpu": "1GiB"}, dtype="float32")
    assert plan.shortfall is not None and list(plan.shortfall.smaller_formats) == ["int8", "nf4"]
    for name, size in plan.shortfall.smaller_formats.items():
        assert planner.plan(folder, max_memory=BUDGETS, dtype=name).source.total_bytes == size


@pytest.mark.parametrize(
    ("name", "rows", "columns", "is_converted"),
    [
        ("int4", 256, 3420, False),  # Qwen2.5-VL's vision
        ("int4", 3420, 256, True),
        ("int4", 576, 576, False),  # SmolLM
        ("fp8", 1536, 576, False),
        ("fp8", 576, 1536, False),
        ("fp8", 384, 256, True),
    ],
)
def test_what_has_no_whole_groups_or_tiles_is_not_converted(
    name: str, rows: int, columns: int, is_converted: bool, tmp_path: Path
) -> None:
    """Of a live model and of files alike; with as many elements as whole tiles have, too."""
    torch = pytest.importorskip("torch")
    linear = torch.nn.Linear(columns, rows, bias=False, device="meta", dtype=torch.bfloat16)
    live = torch.nn.ModuleDict({"up": linear, "end": torch.nn.Linear(128, 128, bias=False, device="meta")})
    assert (
        set(Weights(open_source(live).tree).converted(format_named(name))) == {"up.weight"}
    ) is is_converted
    folder = folder_of("llama", tmp_path / "plain")
    tensor = "model.layers.0.mlp.up_proj.weight"
    write_tensors(
        folder / "model.safetensors",
        {
            tensor: ("BF16", [rows, columns], 2 * rows * columns),
            "lm_head.weight": ("BF16", [128, 128], 2 * 128 * 128),
        },
    )
    found = set(Weights(open_source(folder).tree).converted(format_named(name)))
    assert (found == {tensor}) is is_converted


def test_a_format_says_what_it_needs_of_weights() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(*(torch.nn.Linear(100, 100, device="meta") for _ in range(2)))
    with pytest.raises(InvalidInputError, match="converts weights with rows of a multiple of 128 only"):
        planner.plan(model, max_memory=BUDGETS, dtype="int4")


# What a configuration says that puts other modules into a model than the class has by default.
OTHERWISE: dict[str, tuple[str, dict[str, Any]]] = {
    "gated T5": ("T5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu"}),
    "plain mT5": ("MT5ForConditionalGeneration", {"feed_forward_proj": "relu"}),
    "DeepSeek without a small query": ("DeepseekV2ForCausalLM", {"q_lora_rank": None}),
    "OPT with a narrow embedding": (
        "OPTForCausalLM",
        {"word_embed_proj_dim": 64, "num_attention_heads": 4},
    ),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_files_have_the_same_bytes_as_the_model_that_their_configuration_makes(
    case: str, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name, said = OTHERWISE[case]
    cls = getattr(transformers, name)
    narrow = {"hidden_size": 256, "d_model": 256, "ffn_dim": 512, "d_ff": 512, "vocab_size": 500}
    few = {"num_layers": 2, "num_hidden_layers": 2, "num_decoder_layers": 2, "n_routed_experts": 4}
    with torch.device("meta"):
        live = cls(cls.config_class(**narrow, **few, **said)).to(torch.bfloat16)
    live.tie_weights()
    live.config.architectures = [name]
    live.config.save_pretrained(tmp_path)
    whole = {tensor: tuple(each.shape) for tensor, each in live.named_parameters()}
    write_tensors(
        tmp_path / "model.safetensors",
        {tensor: ("BF16", list(shape), 2 * math.prod(shape)) for tensor, shape in whole.items()},
    )
    files = open_source(tmp_path)
    assert not files.notes
    weights = [
        set(Weights(tree).converted(format_named("nf4"))) for tree in (files.tree, open_source(live).tree)
    ]
    assert weights[0] == weights[1] != set()


def test_a_plan_without_the_field_is_read(tmp_path: Path) -> None:
    plan = planner.plan(folder_of("llama", tmp_path / "plain"), max_memory={0: "4MB", "cpu": "1GiB"})
    data = json.loads(plan.to_json())
    del data["shortfall"]["smaller_formats"]
    assert Plan.from_json(json.dumps(data)).shortfall.smaller_formats == {}


@pytest.mark.parametrize(
    ("model", "expected"),
    [("llama", ["fp8", "nf4"]), ("mixtral", ["fp8"]), ("gpt2", ["int8", "nf4"]), ("gpt_oss", ["mxfp4"])],
)
def test_a_failure_says_which_formats_are_smaller(model: str, expected: list[str], tmp_path: Path) -> None:
    folder = folder_of(model, tmp_path / "plain")
    with pytest.raises(InfeasibleError) as failed:
        planner.plan(folder, max_memory={0: "2MB"})
    assert list(failed.value.smaller_formats) == expected
    assert pickle.loads(pickle.dumps(failed.value)).smaller_formats == failed.value.smaller_formats
    (other,) = planner.plan_many(folder, [{0: "2MB"}])
    assert isinstance(other, InfeasibleError) and other.smaller_formats == failed.value.smaller_formats


def test_int8_is_a_format_where_a_model_is_planned_and_an_element_type_elsewhere(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = folder_of("llama", tmp_path / "plain")
    by_name, by_object = (
        planner.plan(folder, max_memory=BUDGETS, dtype=dtype) for dtype in ("int8", torch.int8)
    )
    assert by_name == by_object and by_name.source.doubts
    live = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False, device="meta"))
    sizes = planner.compute_module_sizes(live, dtype=torch.int8)
    assert sizes[""] == 64  # accelerate's functions count as accelerate does


def test_every_format_that_is_read_has_a_row() -> None:
    names = (*FORMATS, "gptq-2bit-g16", "gptq-3bit-g64", "gptq-8bit-g1024", "awq-4bit-g64")
    assert all(format_named(name) is not None and is_format(name) for name in names)
    assert format_named("float16") is None and not is_format("gptq-5bit-g128")


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("nf5", "nf4"), ("int9", "int8"), ("gptq-4bit-g127", "gptq-4bit-g128"), ("mxfp5", "mxfp4")],
)
def test_the_command_takes_formats_and_names_the_nearest(text: str, nearest: str, tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "plain")
    command = [sys.executable, "-m", "planner", "plan", str(folder), "-d", "0=1GiB", "--json", "--dtype"]
    good = subprocess.run([*command, "NF4"], capture_output=True, text=True, check=True)
    data = json.loads(good.stdout)
    assert [note for note in data["source"]["notes"] if "estimate of nf4 as bitsandbytes" in note]
    assert data["settings"]["dtype"]["value"] == "nf4"
    bad = subprocess.run([*command, text], capture_output=True, text=True, check=False)
    assert bad.returncode == 2 and f"did you mean '{nearest}'" in bad.stdout + bad.stderr


def test_both_pictures_show_a_plan_in_a_format(tmp_path: Path) -> None:
    from planner.report.html import html_report

    opened = open_source(folder_of("llama", tmp_path / "plain"))
    plan = planner.plan(opened, max_memory=BUDGETS, dtype="nf4-double-quant")
    assert "estimate of nf4-double-quant" in html_report(plan, opened.tree)
