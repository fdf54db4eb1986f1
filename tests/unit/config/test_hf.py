"""The import against transformers' own configuration classes: every fact equal, or not said; never wrong."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import transformers

from planner.config import Rank, Stack
from planner.errors import InvalidConfigError
from planner.settings.model_facts import import_config, unlisted_keys
from planner.settings.schema import Model, Settings

SMALL = {
    "llama": {"hidden_size": 96, "num_attention_heads": 6, "num_hidden_layers": 3, "num_key_value_heads": 2},
    "mixtral": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "tie_word_embeddings": True,
    },
    "deepseek_v3": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "qk_rope_head_dim": 8,
    },
    "qwen3_moe": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "head_dim": 32},
    "gemma3_text": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "head_dim": 48},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 99},
    "t5": {"d_model": 64, "num_heads": 4, "num_layers": 2, "d_kv": 24},
}
CONFIGS = {
    **{
        name: lambda name=name, **more: transformers.AutoConfig.for_model(name, **SMALL[name], **more)
        for name in SMALL
    },
    "gemma3": lambda **more: transformers.AutoConfig.for_model(
        "gemma3", text_config=SMALL["gemma3_text"], **more
    ),
    "llava": lambda **more: transformers.AutoConfig.for_model(
        "llava", text_config={"model_type": "llama", **SMALL["llama"]}, **more
    ),
}
SPARSE = {
    "llama": {},
    "mixtral": {"num_attention_heads": 16, "hidden_size": 64},
    "deepseek_v3": {"hidden_size": 64, "num_attention_heads": 4},
    "qwen3_moe": {"num_hidden_layers": 3},
    "gemma3_text": {"hidden_size": 2560, "num_attention_heads": 10},
    "gpt2": {"n_layer": 3},
    "t5": {"tie_word_embeddings": False, "d_model": 64},
    "gemma3": {"text_config": {"hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024}},
    "llava": {"text_config": {"model_type": "llama", "max_position_embeddings": 4096}},
}


def facts_of(layer) -> Model:
    return Stack(Settings).imported(layer).resolve().config.model


def truth_of(made: transformers.PreTrainedConfig) -> dict[str, object]:
    """What the class says. A class without head_dim leaves its models to divide."""
    text = made.get_text_config(encoder=True) if made.model_type == "t5" else made.get_text_config()
    names = [field.name for field in dataclasses.fields(Model)]
    truth = {name: getattr(text, name, None) for name in names}
    if truth["head_dim"] is None:
        truth["head_dim"] = truth["hidden_size"] // truth["num_attention_heads"]
    if truth["num_experts"] is None:
        truth["num_experts"] = getattr(text, "n_routed_experts", None)
    truth.update(model_type=made.model_type)
    truth["dtype"] = None if made.dtype is None else str(made.dtype).removeprefix("torch.")
    quantization = getattr(made, "quantization_config", None) or {}
    return {**truth, "quant_method": quantization.get("quant_method")}


def check(layer, made, *, said: tuple[str, ...] = ()) -> None:
    facts, truth = dataclasses.asdict(facts_of(layer)), truth_of(made)
    wrong = {
        name: (value, truth[name])
        for name, value in facts.items()
        if value is not None and value != truth[name]
    }
    assert not wrong
    assert not [name for name in said if facts[name] is None and truth[name] is not None]


EVERY = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "head_dim",
    "model_type",
)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_config_says_what_the_class_says(tmp_path, name):
    made = CONFIGS[name](dtype="bfloat16")
    made.save_pretrained(tmp_path)
    check(import_config(tmp_path), made, said=(*EVERY, "dtype", "num_key_value_heads"))
    check(import_config(tmp_path / "config.json"), made, said=EVERY)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_full_config_says_what_the_class_says(tmp_path, name):
    made = CONFIGS[name]()
    file = tmp_path / "config.json"
    file.write_text(made.to_json_string(use_diff=False))
    check(import_config(file), made, said=EVERY)


@pytest.mark.parametrize("name", SPARSE)
def test_a_sparse_config_is_never_wrong(tmp_path, name):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": name, **SPARSE[name]}))
    made = transformers.AutoConfig.from_pretrained(tmp_path)
    check(import_config(file), made, said=("model_type",))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_live_config_says_what_the_class_says(name):
    made = CONFIGS[name](dtype=torch.float16)
    check(import_config(made), made, said=(*EVERY, "dtype"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_a_known_architecture_is_translated_or_ignored(name):
    made = CONFIGS[name]()
    assert unlisted_keys(name, made.to_dict()) == ()
    assert unlisted_keys(name, made.to_diff_dict()) == ()


def test_values_know_their_line_key_and_raw_value(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{\n  "model_type": "t5",\n  "num_layers": 12\n}')
    resolved = Stack(Settings).imported(import_config(file)).resolve()
    assert str(resolved.origin("model.num_hidden_layers")) == f"imported · {file}:3:17 (from num_layers = 12)"
    origin = resolved.origin("model.head_dim")
    assert origin.rank is Rank.IMPORTED
    assert origin.note == "head_dim = 64 by the class of model_type 't5' in transformers"


def test_nested_values_know_their_path(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "gemma3", "text_config": {"hidden_size": 64}}')
    resolved = Stack(Settings).imported(import_config(file)).resolve()
    assert resolved.origin("model.hidden_size").note == "from text_config.hidden_size = 64"


def test_the_import_never_says_what_was_asked_for(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(
        '{"model_type": "llama", "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}'
    )
    resolved = Stack(Settings).imported(import_config(file)).resolve()
    assert resolved.config.dtype is None
    assert (resolved.config.model.dtype, resolved.config.model.quant_method) == ("bfloat16", "fp8")
    said = {
        path[0] for path, answer in resolved.answers.items() if path and answer.origin.rank is Rank.IMPORTED
    }
    assert said == {"model"}


def test_an_unknown_architecture_says_only_what_is_certain(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(
        '{"model_type": "brand_new", "dtype": "float16", "hidden_size": 7, "num_attention_heads": 1}'
    )
    assert facts_of(import_config(file)) == Model(model_type="brand_new", dtype="float16")


def test_aliases_that_disagree_are_an_error(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "gpt2", "n_layer": 12, "num_hidden_layers": 13}')
    with pytest.raises(InvalidConfigError, match=r"model\.num_hidden_layers: two keys of the file disagree"):
        facts_of(import_config(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "must hold a mapping"),
        ('{"a": 1, "a": 2}', "duplicate key"),
        ('{"model_type": "llama", "hidden_size": "64"}', "model.hidden_size: expected an int"),
    ],
)
def test_odd_files_end_in_a_clear_error(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(InvalidConfigError, match=message):
        facts_of(import_config(file))


def test_an_empty_config_says_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert facts_of(import_config(tmp_path)) == Model()


def test_a_missing_file_is_a_problem_and_the_user_may_correct_a_fact(tmp_path):
    with pytest.raises(InvalidConfigError, match="cannot be read"):
        facts_of(import_config(tmp_path))
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}'
    )
    stack = Stack(Settings).imported(import_config(tmp_path))
    assert stack.resolve().config.model.head_dim == 16
    assert stack.set(model={"hidden_size": 128}).resolve().config.model.head_dim == 32
