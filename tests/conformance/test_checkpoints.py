"""Plans from headers equal plans from the live model: names, order, blocks, ties and bytes.

The files are written by transformers' own `save_pretrained`, so that names in them are what users have on disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.checkpoint_files import write_tensors

import planner
from planner.checker.check import check
from planner.plans.plan import Plan

SMALL = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(**said: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, **said}))


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=64)
    )


def gemma3() -> Any:
    return transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**{**SMALL, "head_dim": 8, "sliding_window": 16})
    )


def t5() -> Any:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(num_layers=2, d_model=32, d_ff=48, d_kv=8, num_heads=4, vocab_size=64)
    )


def mixtral() -> Any:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL, num_local_experts=4))


def qwen3_moe() -> Any:
    config = transformers.Qwen3MoeConfig(
        **SMALL,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        head_dim=8,
        mlp_only_layers=[1],
    )
    return transformers.Qwen3MoeForCausalLM(config)


def deepseek_v3() -> Any:
    config = transformers.DeepseekV3Config(
        **SMALL, n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16,
        first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config)


def marian() -> Any:
    """Positions are made of sines, and not saved."""
    config = transformers.MarianConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=64, max_position_embeddings=40, pad_token_id=63,
    )  # fmt: skip
    return transformers.MarianMTModel(config)


def llava() -> Any:
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **SMALL},
        vision_config={"model_type": "clip_vision_model", **VISION, "image_size": 28, "patch_size": 14},
    )
    return transformers.LlavaForConditionalGeneration(config)


def qwen2_vl() -> Any:
    config = transformers.Qwen2VLConfig(
        text_config={**SMALL, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4},
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


MODELS: dict[str, Callable[[], Any]] = {
    "dense": llama,
    "dense-tied": lambda: llama(tie_word_embeddings=True),
    "gpt2": gpt2,
    "gemma3": gemma3,
    "t5": t5,
    "mixtral": mixtral,
    "qwen3-moe": qwen3_moe,
    "deepseek-v3": deepseek_v3,
    "llava": llava,
    "qwen2-vl": qwen2_vl,
}
# Names in files that no live model has: the cases that translation is for.
RENAMED = {
    "mixtral": "model.layers.0.block_sparse_moe.experts.0.w1.weight",
    "qwen3-moe": "model.layers.0.mlp.experts.0.gate_proj.weight",
    "llava": "language_model.model.embed_tokens.weight",
    "qwen2-vl": "visual.patch_embed.proj.weight",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Path]]:
    """A live model and the folder it was saved to, made once."""
    known: dict[tuple[str, str], tuple[Any, Path]] = {}

    def make(name: str, most_bytes: str = "5GB") -> tuple[Any, Path]:
        if (name, most_bytes) not in known:
            model = MODELS[name]().to(torch.bfloat16)
            folder = tmp_path_factory.mktemp(name) / name  # a plan says what its folder is called
            model.save_pretrained(folder, max_shard_size=most_bytes)
            known[name, most_bytes] = (model, folder)
        return known[name, most_bytes]

    return make


def unsaved_bytes(model: Any) -> int:
    """Bytes of buffers that no file has."""
    saved = model.state_dict()
    return sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in saved)


def budgets(total_bytes: int) -> list[dict[int | str, int]]:
    shares = ((1.3, 0.5), (0.7, 0.45), (0.5, 0.3), (0.2, 0.2))
    return [{0: int(total_bytes * a), 1: int(total_bytes * b), "cpu": 10 * total_bytes} for a, b in shares]


def homes(plan: Plan, names: Iterable[str]) -> dict[str, object]:
    """Where each of these tensors lies."""
    found = {}
    for name in names:
        key = name
        while key not in plan.device_map and key:
            key = key.rpartition(".")[0]
        found[name] = plan.device_map[key]
    return found


def judged(model: Any, plan: Plan) -> Plan:
    """A plan that the independent checker finds nothing wrong with."""
    findings = check(model, dict(plan.device_map))
    assert planner.is_valid(findings), findings
    return plan


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_from_headers_equals_the_plan_from_the_model(
    saved: Callable[..., tuple[Any, Path]], name: str
) -> None:
    model, folder = saved(name)
    total_bytes = planner.plan(folder, max_memory={"cpu": 10**12}).source.total_bytes
    live_bytes = planner.plan(model, max_memory={"cpu": 10**12}).source.total_bytes
    assert live_bytes - total_bytes == unsaved_bytes(model)
    unsaved = [name for name, _ in model.named_buffers() if name not in model.state_dict()]
    # DeviceBudget for what no file has, so that its bytes decide nothing.
    slack = 8 * unsaved_bytes(model)
    for room in budgets(total_bytes):
        room = {device: size + slack for device, size in room.items()}
        for settings in ({}, {"granularity": "module"}, {"strategy": "sequential"}):
            from_model = judged(model, planner.plan(model, max_memory=room, **settings))
            from_files = judged(model, planner.plan(folder, max_memory=room, **settings))
            if homes(from_files, model.state_dict()) != homes(from_model, model.state_dict()):
                # What no file has stays where its block runs, and only the live model's plan has to find room for it there.
                assert unsaved and not from_model.certificate.proven, (room, settings)
                assert sum(from_files.offloaded_bytes.values()) < sum(from_model.offloaded_bytes.values())
                continue
            # What no file has weighs nothing here, so it may lie elsewhere; where it does not, the maps are the same.
            if homes(from_files, unsaved) == homes(from_model, unsaved):
                assert from_files.device_map == from_model.device_map, (room, settings)
            assert from_files.source.blocks == from_model.source.blocks


@pytest.mark.parametrize("name", MODELS)
def test_a_wanted_type_counts_as_for_the_model(saved: Callable[..., tuple[Any, Path]], name: str) -> None:
    model, folder = saved(name)
    wide = {"dtype": "float32", "max_memory": {"cpu": 10**12}}
    saved_names = model.state_dict()
    unsaved = sum(
        buffer.numel() * (4 if buffer.is_floating_point() else buffer.element_size())
        for name, buffer in model.named_buffers()
        if name not in saved_names
    )
    total_bytes = planner.plan(folder, **wide).source.total_bytes
    assert planner.plan(model, **wide).source.total_bytes == total_bytes + unsaved


@pytest.mark.parametrize(
    "absent",
    [
        (),
        ("final_logits_bias",),
        ("model.encoder.embed_positions.weight",),
        ("model.decoder.embed_positions.weight", "final_logits_bias"),
    ],
)
def test_what_the_class_makes_itself_is_planned_whether_or_not_files_have_it(
    tmp_path: Path, absent: tuple[str, ...]
) -> None:
    """Older files have positions, and lack biases of zeros."""
    model = marian()
    model.save_pretrained(tmp_path)
    state = {
        id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())
    }
    tensors = {name: ("F32", list(t.shape), t.nbytes) for name, t in state.values() if name not in absent}
    write_tensors(tmp_path / "model.safetensors", tensors)
    for dtype, narrower in (("float32", 1), ("bfloat16", 2)):
        whole = planner.plan(tmp_path, max_memory={0: 10**9}, dtype=dtype)
        assert whole.source.total_bytes * narrower == sum(t.nbytes for _, t in state.values())
        assert not whole.source.notes
    room = {0: whole.source.total_bytes, 1: 2 * whole.source.total_bytes, "cpu": 10**9}
    from_files, from_model = planner.plan(tmp_path, max_memory=room), planner.plan(model, max_memory=room)
    stored = model.state_dict().keys() - set(absent)
    assert homes(judged(model, from_files), stored) == homes(from_model, stored)


@pytest.mark.parametrize("name", RENAMED)
def test_files_hold_names_that_no_live_model_has(saved: Callable[..., tuple[Any, Path]], name: str) -> None:
    """Or these tests would show nothing of translation."""
    model, folder = saved(name)
    import safetensors

    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert RENAMED[name] in set(file.keys())
    assert RENAMED[name] not in model.state_dict()


@pytest.mark.parametrize("name", ["dense", "mixtral", "qwen2-vl"])
def test_the_number_of_files_changes_nothing(saved: Callable[..., tuple[Any, Path]], name: str) -> None:
    _, whole = saved(name)
    _, parted = saved(name, "20KB")
    assert len(list(parted.glob("*.safetensors"))) > 2
    room = {0: 60_000, "cpu": 10**9}
    assert planner.plan(whole, max_memory=room) == planner.plan(parted, max_memory=room)
    index = parted / "model.safetensors.index.json"
    assert planner.plan(whole, max_memory=room) == planner.plan(index, max_memory=room)


@pytest.mark.parametrize("name", ["dense", "gpt2", "mixtral", "llava", "qwen2-vl"])
def test_from_pretrained_takes_the_map(
    saved: Callable[..., tuple[Any, Path]], name: str, tmp_path: Path
) -> None:
    model, folder = saved(name)
    plan = planner.plan(folder, max_memory={0: 100_000, 1: 60_000, "cpu": 10**9})
    assert len(set(plan.device_map.values())) > 1
    on_cpu = dict.fromkeys(plan.device_map, "cpu")
    loaded = type(model).from_pretrained(folder, device_map=on_cpu)
    assert {str(tensor.device) for tensor in loaded.state_dict().values()} == {"cpu"}


def test_from_pretrained_takes_a_map_with_disk(
    saved: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    _, folder = saved("dense")
    plan = planner.plan(folder, max_memory={"cpu": 30_000, "disk": 10**9})
    assert set(plan.device_map.values()) == {"cpu", "disk"}
    loaded = transformers.LlamaForCausalLM.from_pretrained(
        folder, device_map=dict(plan.device_map), offload_folder=tmp_path
    )
    words = torch.arange(5)[None]
    whole = transformers.LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(loaded(words).logits, whole(words).logits)


def test_a_tie_that_the_files_hold_twice_is_counted_once(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    once = planner.plan(tmp_path, max_memory={0: 10**9})
    tensors = {name: ("F32", list(t.shape), t.nbytes) for name, t in model.state_dict().items()}
    assert "lm_head.weight" in tensors
    write_tensors(tmp_path / "model.safetensors", tensors)
    twice = planner.plan(tmp_path, max_memory={0: 10**9})
    assert twice.source.total_bytes == once.source.total_bytes
    assert any("lm_head.weight is in the files beside" in note for note in twice.source.notes)


@pytest.mark.parametrize("said", [True, False, None])
def test_ties_go_by_the_configuration_and_its_defaults(tmp_path: Path, said: bool | None) -> None:
    """A Llama that says nothing is not tied, a GPT-2 that says nothing is."""
    for model, default in ((llama(), False), (gpt2(), True)):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        config.pop("tie_word_embeddings", None)
        if said is not None:
            config["tie_word_embeddings"] = said
        (folder / "config.json").write_text(json.dumps(config))
        tensors = {name: ("F32", list(t.shape), t.nbytes) for name, t in model.state_dict().items()}
        write_tensors(folder / "model.safetensors", tensors)
        total = sum(size for _, _, size in tensors.values())
        is_tied = default if said is None else said
        saved_once = tensors["lm_head.weight"][2] if is_tied else 0
        assert planner.plan(folder, max_memory={0: 10**9}).source.total_bytes == total - saved_once


def fp8(model: Any) -> dict[str, tuple[str, list[int], int]]:
    """A checkpoint of 8-bit weights with 4-byte scales beside them; embeddings and norms as they were."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        shape = list(tensor.shape)
        if "_proj." in name:
            tensors[name] = ("F8_E4M3", shape, math.prod(shape))
            tensors[f"{name}_scale_inv"] = ("F32", [1, 1], 4)
        else:
            tensors[name] = ("BF16", shape, 2 * math.prod(shape))
    return tensors


def gptq(model: Any) -> dict[str, tuple[str, list[int], int]]:
    """A checkpoint of 4-bit weights packed into 32-bit words, with zero points, scales and group indices."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        shape = list(tensor.shape)
        if "_proj.weight" not in name:
            tensors[name] = ("F16", shape, 2 * math.prod(shape))
            continue
        out, into = shape
        stem = name.removesuffix("weight")
        tensors[f"{stem}qweight"] = ("I32", [into // 8, out], into // 8 * out * 4)
        tensors[f"{stem}qzeros"] = ("I32", [1, out // 8], out // 8 * 4)
        tensors[f"{stem}scales"] = ("F16", [1, out], 2 * out)
        tensors[f"{stem}g_idx"] = ("I32", [into], 4 * into)
    return tensors


def mxfp4(model: Any) -> dict[str, tuple[str, list[int], int]]:
    """A checkpoint of 4-bit floats as the format has them, and scales of one byte."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        shape = list(tensor.shape)
        if "_proj.weight" in name:
            tensors[name] = ("F4", shape, math.prod(shape) // 2)
            tensors[f"{name}_scale"] = ("F8_E8M0", [shape[0], shape[1] // 16], math.prod(shape) // 16)
        else:
            tensors[name] = ("BF16", shape, 2 * math.prod(shape))
    return tensors


@pytest.mark.parametrize("packed", [fp8, gptq, mxfp4])
def test_quantised_weights_count_as_stored(tmp_path: Path, packed: Callable[[Any], Any]) -> None:
    model = llama()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": packed.__name__}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = packed(model)
    write_tensors(tmp_path / "model.safetensors", tensors)
    total = sum(size for _, _, size in tensors.values())
    plan = planner.plan(tmp_path, max_memory={0: total // 2, 1: total // 2, "cpu": 10**9})
    assert plan.source.total_bytes == total
    findings = check(model, dict(plan.device_map))
    assert planner.is_valid(findings), findings
    # A wanted type changes embeddings, norms and heads; what is packed, and its scales, stay.
    cast = planner.plan(tmp_path, max_memory={"cpu": 10**9}, dtype="float32").source.total_bytes
    plain = sum(size for name, (_, _, size) in tensors.items() if "_proj." not in name)
    assert cast == total + plain


def test_fused_experts_take_their_scales_along(tmp_path: Path) -> None:
    model = mixtral()
    model.save_pretrained(tmp_path)
    import safetensors

    tensors = {}
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        for name in list(file.keys()):
            shape = file.get_slice(name).get_shape()
            is_packed = ".experts." in name
            tensors[name] = ("F8_E4M3" if is_packed else "BF16", shape, math.prod(shape) * (2 - is_packed))
            if is_packed:
                tensors[f"{name}_scale_inv"] = ("F32", [1, 1], 4)
    write_tensors(tmp_path / "model.safetensors", tensors)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "fp8"}})
    )
    plan = planner.plan(tmp_path, max_memory={0: 20_000, "cpu": 10**9}, granularity="module")
    assert plan.source.total_bytes == sum(size for _, _, size in tensors.values())
    findings = check(model, dict(plan.device_map))
    assert planner.is_valid(findings), findings


def test_sizes_of_files_count_for_a_live_model(saved: Callable[..., tuple[Any, Path]]) -> None:
    """A model that was built in one type and will be loaded in another: the plan is of what is loaded."""
    for name in ("dense", "mixtral", "gpt2"):
        stored, folder = saved(name)
        wide = MODELS[name]()
        alone = planner.plan(wide, max_memory={"cpu": 10**12}).source.total_bytes
        beside = planner.plan(wide, checkpoint=folder, max_memory={"cpu": 10**12}).source.total_bytes
        expected = planner.plan(stored, max_memory={"cpu": 10**12}).source.total_bytes
        extra = unsaved_bytes(wide) - unsaved_bytes(stored)
        assert (alone > beside, beside) == (True, expected + extra)
        cast = planner.plan(wide, checkpoint=folder, dtype="float32", max_memory={"cpu": 10**12})
        assert cast.source.total_bytes == alone


def test_a_configuration_alone_is_planned_by_its_class(tmp_path: Path) -> None:
    for model in (llama(), mixtral(), qwen2_vl()):
        folder = tmp_path / type(model).__name__
        model.config.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        config["architectures"] = [type(model).__name__]
        (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
        for source in (folder, folder / "config.json"):
            plan = planner.plan(source, max_memory={0: 100_000, "cpu": 10**9})
            live = planner.plan(model.to(torch.bfloat16), max_memory={0: 100_000, "cpu": 10**9})
            assert plan.source.kind == "config"
            assert plan.device_map == live.device_map
            assert plan.source.total_bytes - unsaved_bytes(model) <= live.source.total_bytes


def test_what_the_table_lacks_is_asked_of_transformers(tmp_path: Path) -> None:
    """A head that no line of the table has."""
    config = transformers.LlamaConfig(**SMALL)
    model = transformers.LlamaForTokenClassification(config)
    model.save_pretrained(tmp_path)
    plan = planner.plan(tmp_path, max_memory={0: 30_000, "cpu": 10**9})
    live = planner.plan(model, max_memory={0: 30_000 + 8 * unsaved_bytes(model), "cpu": 10**9})
    assert plan.source.total_bytes + unsaved_bytes(model) == live.source.total_bytes
    assert planner.is_valid(check(model, dict(plan.device_map)))


def test_what_nobody_knows_is_planned_as_stored_and_says_so(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["NobodysModel"], "model_type": "nobodys"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = planner.plan(tmp_path, max_memory={0: 40_000, "cpu": 10**9})
    assert any("names and blocks are those of the files" in note for note in plan.source.notes)
    blocks = {".".join(name.split(".")[:3]) for name in plan.device_map if name.startswith("model.layers.")}
    assert {name for name in plan.device_map if name.startswith("model.layers.")} == blocks


def test_plans_of_checkpoints_survive_json(saved: Callable[..., tuple[Any, Path]]) -> None:
    _, folder = saved("dense")
    for dtype in (None, "nf4"):  # a format leaves a note
        plan = planner.plan(folder, max_memory={0: 10**9}, dtype=dtype)
        assert bool(plan.source.notes) == (dtype is not None)
        assert Plan.from_json(plan.to_json()) == plan
