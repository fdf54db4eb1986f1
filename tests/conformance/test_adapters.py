"""An adapter is planned with its base, byte for byte as peft loads both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import planner
from planner.checkpoint.source import open_source
from planner.model.layout import Layout

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def llama() -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=128,
        )
    )


def gpt2() -> Any:
    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=128, n_positions=32, bos_token_id=1, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def lora(*modules: str, **more: Any) -> Any:
    return peft.LoraConfig(r=4, target_modules=list(modules), task_type="CAUSAL_LM", **more)


CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "half": (llama, lambda: lora("q_proj", "v_proj"), "bfloat16"),
    "dora": (llama, lambda: lora("q_proj", "down_proj", use_dora=True), "float32"),
    "a copied head": (llama, lambda: lora("q_proj", modules_to_save=["lm_head"]), "bfloat16"),
    "an embedding": (llama, lambda: lora("embed_tokens", "down_proj", bias="all"), "bfloat16"),
    "stored without a prefix": (gpt2, lambda: lora("c_attn"), "float32"),
    "biases in place": (gpt2, lambda: lora("c_attn", bias="all"), "float32"),
    "ia3": (
        llama,
        lambda: peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        ),
        "bfloat16",
    ),
    "loha": (
        llama,
        lambda: peft.LoHaConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        "bfloat16",
    ),
}


def adapted(folder: Path, case: str) -> tuple[Path, Path]:
    """Folders of a base and of an adapter for it, as their libraries save them."""
    make, config, dtype = CASES[case]
    base, adapter = folder / "base", folder / "adapter"
    make().to(getattr(torch, dtype)).save_pretrained(base)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(loaded, config()).save_pretrained(adapter)
    return base, adapter


def live_bytes(base: Path, adapter: Path) -> dict[str, int]:
    """Bytes of each layer and of the whole, of a model that peft has loaded; each tensor once."""
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base, device_map={"": "cpu"}), adapter
    )
    sizes: dict[str, int] = {}
    for name, tensor in model.named_parameters():
        size = tensor.numel() * tensor.element_size()
        above = next((f".{n}." for n in (0, 1) if f".{n}." in name), "")
        for key in {above, ""}:
            sizes[key] = sizes.get(key, 0) + size
    return sizes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_and_its_base_are_as_large_as_peft_makes_them(case: str, tmp_path: Path) -> None:
    base, adapter = adapted(tmp_path, case)
    expected = live_bytes(base, adapter)
    opened = open_source(adapter)
    sizes = Layout(opened.tree, sizes=opened.sizes(None, {})).stored_sizes()
    assert sizes[""] == expected[""]
    layers = "transformer.h" if case in ("stored without a prefix", "biases in place") else "model.layers"
    assert [sizes[f"{layers}.{n}"] for n in (0, 1)] == [expected[f".{n}."] for n in (0, 1)]
    plan = planner.plan(adapter, max_memory={"cpu": "1GiB"})
    assert plan.source.total_bytes == expected[""]
    assert plan.source.name == "adapter"
    assert plan.source.notes[0].startswith(f"{plan.source.format.partition(' + ')[2]} of {base}")
    assert not any("not known" in note or "not in the index" in note for note in plan.source.notes)


@pytest.mark.filterwarnings("ignore")
def test_the_map_is_one_for_the_base(tmp_path: Path) -> None:
    """Even where modules are taken apart, no key is of a module that only peft makes."""
    base, adapter = adapted(tmp_path, "half")
    plan = planner.plan(
        adapter,
        max_memory={0: "60KiB", "cpu": "1GiB"},
        strategy="sequential",
        no_split_module_classes=["Linear"],
        dtype="float16",
    )
    assert plan.source.format == "float16 + LoRA"
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    names = dict(model.named_modules()).keys()
    assert set(plan.device_map) <= names
    assert len(plan.device_map) > 6
    everything = dict.fromkeys(plan.device_map, "cpu")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(adapter, device_map=everything)
    assert any("lora_A" in name for name, _ in loaded.named_parameters())


@pytest.mark.filterwarnings("ignore")
def test_a_wished_dtype_is_for_the_base(tmp_path: Path) -> None:
    """peft makes its own tensors 32 bits wide, whatever the base is in."""
    _, adapter = adapted(tmp_path, "half")
    as_stored, wide = (
        planner.plan(adapter, max_memory={"cpu": "1GiB"}, dtype=dtype).source.total_bytes
        for dtype in (None, "float32")
    )
    base_bytes = planner.plan(tmp_path / "base", max_memory={"cpu": "1GiB"}).source.total_bytes
    assert wide - as_stored == base_bytes


def adapter_folder(folder: Path, config: dict[str, Any]) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {f"base_model.model.fc.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


def refused(source: Path) -> str:
    with pytest.raises(planner.CheckpointError) as caught:
        planner.plan(source, max_memory={"cpu": "1GiB"})
    return caught.value.reason


def test_without_its_base_an_adapter_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)
    named = adapter_folder(tmp_path / "named", {"base_model_name_or_path": "org/base", "revision": "v2"})
    for source in (named, named / "adapter_model.safetensors", named / "adapter_config.json"):
        reason = refused(source)
        assert "a LoRA and no model: it changes org/base" in reason
        assert "`hf download org/base --revision v2`" in reason
        assert "`planner plan org/base@v2`" in reason
    path = adapter_folder(tmp_path / "path", {"base_model_name_or_path": "/nowhere/else"})
    assert "it changes /nowhere/else, which is not there" in refused(path)
    assert "names no base model" in refused(adapter_folder(tmp_path / "none", {}))


def test_a_base_in_the_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "hub" / "models--org--base"
    snapshot = store / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("a" * 40)
    save_file({"fc.weight": torch.zeros(8, 8)}, snapshot / "model.safetensors")
    adapter = adapter_folder(tmp_path / "adapter", {"base_model_name_or_path": "org/base"})
    plan = planner.plan(adapter, max_memory={"cpu": "1GiB"})
    assert plan.source.total_bytes == 8 * 8 * 4 + 2 * 2 * 2 * 4
    assert dict(plan.device_map) == {"fc": "cpu"}


def test_an_adapter_of_an_adapter_is_refused(tmp_path: Path) -> None:
    first = adapter_folder(tmp_path / "first", {"base_model_name_or_path": str(tmp_path)})
    second = adapter_folder(tmp_path / "second", {"base_model_name_or_path": str(first)})
    assert "which is an adapter itself" in refused(second)


def test_a_folder_with_its_own_model_is_the_base(tmp_path: Path) -> None:
    """As transformers has it: a model with an adapter embedded is its own base."""
    from safetensors.torch import save_file

    folder = adapter_folder(tmp_path / "both", {"base_model_name_or_path": "org/elsewhere"})
    save_file({"fc.weight": torch.zeros(8, 8)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    assert planner.plan(folder, max_memory={"cpu": "1GiB"}).source.total_bytes == 8 * 8 * 4 + 2 * 2 * 2 * 4


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("x.gguf", "which is a GGUF file; in adapter_config.json, name the model that this was made of"),
        ("model_index.json", "which is a pipeline; in adapter_config.json, name the folder"),
    ],
)
def test_a_base_that_peft_cannot_change_is_refused_by_what_it_is(
    file: str, said: str, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / file).write_text("{}")
    assert said in refused(adapter_folder(tmp_path / "lora", {"base_model_name_or_path": str(base)}))


def test_what_is_wrong_with_a_base_says_whose_base_it_is(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "lora"
    base.mkdir()
    folder = adapter_folder(adapter, {"base_model_name_or_path": str(base)})
    assert refused(folder).startswith(f"(the base of {adapter}) holds neither")
    (base / "m.pt").write_bytes(b"PK")
    reason = refused(folder)
    # The command stays last, where it is copied from.
    assert reason.startswith(f"(the base of {adapter}) holds only pickled") and reason.endswith(
        "m.safetensors"
    )


def test_an_adapter_whose_weights_are_missing_says_so(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "no weights of the adapter" in refused(tmp_path)


def test_an_adapter_named_by_its_file_is_no_base(tmp_path: Path) -> None:
    first = adapter_folder(tmp_path / "first", {"base_model_name_or_path": "x/y"})
    (name,) = (file.name for file in first.iterdir() if file.suffix == ".safetensors")
    second = adapter_folder(tmp_path / "second", {"base_model_name_or_path": str(first / name)})
    assert "which is an adapter itself" in refused(second)
