"""PEFT on models that were loaded over devices: every answer, and every adapter, is that of the undispatched model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.utils import ModelOutput

import planner
import stored_models
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.dispatching.tensors.resting import RestingPlace
from planner.dispatching.transfer.kinds import KINDS
from planner.plans.device_map import DeviceMap
from stored_models import inputs_of, reference, stored

Map: TypeAlias = dict[str, Any]

IDS = torch.arange(3, 13)[None]
MAPS = {
    "two": (0, 0, 1, 1),
    "cpu": (0, "cpu", 0, "cpu"),
    "disk": (0, "disk", 0, "disk"),
    "mixed": (0, "cpu", 1, "disk"),
}
# Where each layer runs.
RUNS = {"two": (0, 0, 1, 1), "cpu": (0, 0, 0, 0), "disk": (0, 0, 0, 0), "mixed": (0, 0, 1, 0)}


def few(cases: Iterable[str], *each_time: str) -> list[Any]:
    """Some cases each time, and the others in sweeps."""
    return [name if name in each_time else pytest.param(name, marks=pytest.mark.sweep) for name in cases]


EACH_MAP = few(MAPS, "mixed")
SWEPT_MAPS = few(MAPS)
LORA: Map = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(folder, tmp_path_factory.mktemp("adapter"), peft.LoraConfig(**LORA, init_lora_weights=False))


def saved(folder: Path, into: Path, config: peft.PeftConfig) -> Path:
    """An adapter that changes the answers, in files."""
    torch.manual_seed(7)
    model: Any = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(into)
    return into


@pytest.fixture(autouse=True)
def current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing is written below it."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield here
    assert not list(here.iterdir())


@pytest.fixture
def here() -> Iterator[planner.Integration]:
    with planner.integrate() as integration:
        yield integration


def device_map(layers: tuple[Any, ...]) -> Map:
    outer = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
    return {**dict.fromkeys(outer, 0), **{f"model.layers.{i}": device for i, device in enumerate(layers)}}


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval().to(0)


def spread(folder: Path, name: str, offload: Path) -> Any:
    placed = device_map(MAPS[name])
    return AutoModelForCausalLM.from_pretrained(folder, device_map=placed, offload_folder=offload).eval()


@torch.no_grad()
def answer(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS.to(0)).logits.cpu()
    return found


def tokens(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.generate(input_ids=IDS.to(0), max_new_tokens=4, do_sample=False)
    return found.cpu()


def adapters(model: nn.Module) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def requires_adapters_beside(model: nn.Module, name: str) -> None:
    """Each adapter is real and where its layer runs."""
    found = adapters(model)
    assert found
    for path, parameter in found.items():
        layer = int(path.split(".layers.")[1].split(".")[0])
        assert not parameter.is_meta and parameter.device == torch.device(RUNS[name][layer]), path


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in planner.state_dict(model).items()}


def require_equal(found: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert found.keys() == want.keys()
    assert [name for name in want if not found[name].equal(want[name])] == []


def reloaded(model: Any, into: Path) -> dict[str, torch.Tensor]:
    model.save_pretrained(into)
    return state(AutoModelForCausalLM.from_pretrained(into))


# ---- PeftModel.from_pretrained

Own: TypeAlias = Callable[[str], Map]


def auto(name: str) -> Map:
    return {}


def own(name: str) -> Map:
    placed = device_map(MAPS[name])
    return {"device_map": {f"base_model.model.{key}": device for key, device in placed.items()}}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("asked", [auto, own])
@pytest.mark.parametrize("name", EACH_MAP)
def test_an_adapter_is_loaded(name: str, asked: Own, folder: Path, adapter: Path, tmp_path: Path) -> None:
    want = peft.PeftModel.from_pretrained(plain(folder), adapter)
    base = spread(folder, name, tmp_path / "o")
    model = peft.PeftModel.from_pretrained(base, adapter, offload_folder=tmp_path / "o2", **asked(name))
    assert answer(model).equal(answer(want)) and tokens(model).equal(tokens(want))
    merged, want = model.merge_and_unload(), want.merge_and_unload()
    assert answer(merged).equal(answer(want))
    require_equal(reloaded(merged, tmp_path / "s"), reloaded(want, tmp_path / "s2"))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", EACH_MAP)
def test_what_was_trained_once_is_trained_further(
    name: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    """`is_trainable` with a map of one's own: adapters of offloaded layers lie where they run."""
    want = peft.PeftModel.from_pretrained(plain(folder), adapter, is_trainable=True)
    base = spread(folder, name, tmp_path / "o")
    model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True, **own(name))
    requires_adapters_beside(model, name)
    require_equal(trained(model), trained(want))
    assert is_offloaded(next(base.model.layers[1].mlp.up_proj.parameters())) is (name != "two")


# ---- get_peft_model


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", EACH_MAP)
def test_a_fresh_adapter_is_made_where_its_layer_runs(
    name: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    want = answer(plain(folder))
    model = peft.get_peft_model(spread(folder, name, tmp_path / "o"), peft.LoraConfig(**LORA))
    requires_adapters_beside(model, name)
    assert answer(model).equal(want)
    loaded = peft.PeftModel.from_pretrained(plain(folder), adapter)
    model.load_adapter(adapter, "other")
    model.set_adapter("other")
    requires_adapters_beside(model, name)
    assert answer(model).equal(answer(loaded)) and tokens(model).equal(tokens(loaded))
    with model.disable_adapter():
        assert answer(model).equal(want)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", SWEPT_MAPS)
def test_an_adapter_is_loaded_over_a_fresh_one(
    name: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    """PEFT dispatches a model with its first adapter anew."""
    loaded = peft.PeftModel.from_pretrained(plain(folder), adapter)
    model = peft.get_peft_model(spread(folder, name, tmp_path / "o"), peft.LoraConfig(**LORA))
    model.load_adapter(adapter, "default")
    assert answer(model).equal(answer(loaded)) and tokens(model).equal(tokens(loaded))


def trained(model: Any, steps: int = 2) -> dict[str, torch.Tensor]:
    """All that is trainable, after some steps of SGD."""
    model.train()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS.to(0), labels=IDS.to(0)).loss.backward()
        optimizer.step()
    model.eval()
    return {name: p.detach().cpu() for name, p in parameters.items()}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", EACH_MAP)
def test_adapters_are_trained(name: str, folder: Path, tmp_path: Path) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for base in (plain(folder), spread(folder, name, tmp_path / "o")):
        torch.manual_seed(1)
        model = peft.get_peft_model(base, peft.LoraConfig(**LORA, init_lora_weights="gaussian"))
        found.append(trained(model))
    assert len(found[0]) == 16
    require_equal(found[1], found[0])


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


# ---- transformers' own methods


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", EACH_MAP)
def test_a_model_loads_an_adapter_itself(name: str, folder: Path, adapter: Path, tmp_path: Path) -> None:
    want, model = plain(folder), spread(folder, name, tmp_path / "o")
    before = dict(model.hf_device_map)
    for each in (want, model):
        each.load_adapter(str(adapter))
    requires_adapters_beside(model, name)
    assert model.hf_device_map == before
    assert answer(model).equal(answer(want)) and tokens(model).equal(tokens(want))
    for each in (want, model):
        each.load_adapter(str(adapter), "second")
        each.set_adapter("second")
    requires_adapters_beside(model, name)
    assert answer(model).equal(answer(want))
    for each in (want, model):
        each.delete_adapter(["default", "second"])
    assert answer(model).equal(answer(plain(folder)))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", SWEPT_MAPS)
def test_a_model_gets_a_fresh_adapter_itself(name: str, folder: Path, tmp_path: Path) -> None:
    found = []
    for model in (plain(folder), spread(folder, name, tmp_path / "o")):
        torch.manual_seed(1)
        model.add_adapter(peft.LoraConfig(**LORA))
        found.append(trained(model))
    requires_adapters_beside(model, name)
    require_equal(found[1], found[0])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", SWEPT_MAPS)
def test_an_adapter_is_loaded_with_its_base(name: str, folder: Path, adapter: Path, tmp_path: Path) -> None:
    """A folder of an adapter names its base."""
    want = peft.PeftModel.from_pretrained(plain(folder), adapter)
    model = spread(adapter, name, tmp_path / "o")
    requires_adapters_beside(model, name)
    assert answer(model).equal(answer(want)) and tokens(model).equal(tokens(want))


# ---- prompts


PROMPTS: dict[str, Callable[[], peft.PeftConfig]] = {
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16
    ),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", few(PROMPTS, "prompt"))
@pytest.mark.parametrize("name", EACH_MAP)
def test_prompts_are_trained_saved_and_loaded(name: str, kind: str, folder: Path, tmp_path: Path) -> None:
    found, models = [], []
    for base in (plain(folder), spread(folder, name, tmp_path / "o")):
        torch.manual_seed(1)
        models.append(peft.get_peft_model(base, PROMPTS[kind]()))
        found.append(trained(models[-1]))
    require_equal(found[1], found[0])
    assert answer(models[1]).equal(answer(models[0])) and tokens(models[1]).equal(tokens(models[0]))
    models[0].save_pretrained(tmp_path / "prompt")
    want = peft.PeftModel.from_pretrained(plain(folder), tmp_path / "prompt")
    model = peft.PeftModel.from_pretrained(spread(folder, name, tmp_path / "o2"), tmp_path / "prompt")
    assert answer(model).equal(answer(want)) and tokens(model).equal(tokens(want))


# ---- embeddings that are offloaded

EMBEDDINGS: dict[str, Callable[[], peft.PeftConfig]] = {
    **PROMPTS,
    "lora": lambda: peft.LoraConfig(**{**LORA, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "whole": lambda: peft.LoraConfig(**LORA, modules_to_save=["embed_tokens", "lm_head"]),
    "tokens": lambda: peft.LoraConfig(**LORA, trainable_token_indices=[3, 5]),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", few(EMBEDDINGS, "whole"))
@pytest.mark.parametrize("place", few(["cpu", "disk"], "disk"))
def test_embeddings_are_offloaded(place: str, kind: str, folder: Path, tmp_path: Path) -> None:
    """What PEFT makes beside them, of them, and saves of them."""
    placed = {**device_map(MAPS["mixed"]), "model.embed_tokens": place, "lm_head": place}

    def loaded() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder, device_map=placed, offload_folder=tmp_path / "o"
        ).eval()

    found, models = [], []
    for base in (plain(folder), loaded()):
        torch.manual_seed(1)
        models.append(peft.get_peft_model(base, EMBEDDINGS[kind]()))
        found.append(trained(models[-1]))
    require_equal(found[1], found[0])
    want = answer(models[0])
    assert answer(models[1]).equal(want)
    models[1].save_pretrained(tmp_path / "adapter")
    assert answer(peft.PeftModel.from_pretrained(loaded(), tmp_path / "adapter")).equal(want)
    if kind not in PROMPTS:
        want_merged, merged = (model.merge_and_unload() for model in models)
        assert answer(merged).equal(answer(want_merged))
        require_equal(reloaded(merged, tmp_path / "s"), reloaded(want_merged, tmp_path / "s2"))


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


# ---- what holds afterwards


def test_the_merged_model_is_dispatched_again_and_undispatched(
    folder: Path, adapter: Path, tmp_path: Path
) -> None:
    """Also outside, and while PEFT's wrapper is still there."""
    wrapped = peft.PeftModel.from_pretrained(plain(folder), adapter)
    want = answer(wrapped.merge_and_unload())
    with planner.integrate():
        base = spread(folder, "mixed", tmp_path / "o")
        model = peft.PeftModel.from_pretrained(base, adapter, **own("mixed"))
    assert model.hf_device_map == base.hf_device_map == device_map(MAPS["mixed"])
    assert model.merge_and_unload() is base
    assert answer(base).equal(want)
    planner.dispatch(base, device_map((1, 0, "cpu", 0)))
    assert answer(base).equal(want)
    planner.undispatch(base)
    assert {parameter.device.type for parameter in base.parameters()} == {"cpu"}
    assert not hasattr(base, "hf_device_map") and not any("_hf_hook" in vars(m) for m in base.modules())
    assert answer(base.to(0)).equal(want)


@pytest.mark.usefixtures("here")
def test_a_model_with_an_adapter_is_undispatched(folder: Path, adapter: Path, tmp_path: Path) -> None:
    want = peft.PeftModel.from_pretrained(plain(folder), adapter)
    base = spread(folder, "mixed", tmp_path / "o")
    model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True, **own("mixed"))
    planner.undispatch(model)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert answer(model.to(0).eval()).equal(answer(want))


@pytest.mark.sweep  # torch.compile takes seconds
@pytest.mark.usefixtures("here")
def test_adapters_over_two_devices_are_one_graph(folder: Path, adapter: Path, tmp_path: Path) -> None:
    """Also before any forward has told what the classes of arguments are."""
    want = peft.PeftModel.from_pretrained(plain(folder), adapter)
    base = spread(folder, "two", tmp_path / "o")
    model = peft.PeftModel.from_pretrained(base, adapter, **own("two"))
    for cls in [cls for cls in KINDS if issubclass(cls, ModelOutput)]:
        del KINDS[cls]
    assert answer(torch.compile(model, fullgraph=True, backend="eager")).equal(answer(want))
    want, model = want.merge_and_unload(), model.merge_and_unload()
    assert answer(torch.compile(model, fullgraph=True, backend="eager")).equal(answer(want))


# ---- where and from what adapters are made


@pytest.mark.usefixtures("here")
def test_no_weight_is_read_for_an_adapter_that_needs_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    value = RestingPlace.value
    monkeypatch.setattr(RestingPlace, "value", lambda place, name: (read.append(name), value(place, name))[1])
    model = spread(folder, "mixed", tmp_path / "o")
    read.clear()
    peft.get_peft_model(model, peft.LoraConfig(**LORA, use_rslora=True))
    assert read == []
    dora = peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    peft.get_peft_model(spread(folder, "mixed", tmp_path / "o"), dora)
    assert {name.split(".layers.")[1] for name in read} == {
        "1.self_attn.q_proj.weight",
        "3.self_attn.q_proj.weight",
    }


@pytest.mark.usefixtures("here")
def test_adapters_follow_a_plan_that_runs_layers_on_the_cpu(
    folder: Path, adapter: Path, tmp_path: Path
) -> None:
    placed = DeviceMap(device_map((0, "cpu", 1, "disk")), {"model.layers.1": "cpu", "model.layers.3": 1})
    where = ("virtual:0", "cpu", "virtual:1", "virtual:1")

    def loaded() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, device_map=placed, offload_folder=tmp_path / "o")

    own_adapter = loaded()
    own_adapter.load_adapter(str(adapter))
    fresh = peft.get_peft_model(loaded(), peft.LoraConfig(**LORA))
    again = peft.PeftModel.from_pretrained(loaded(), adapter, device_map=placed, is_trainable=True)
    for model in (own_adapter, fresh, again):
        for name, parameter in adapters(model).items():
            assert parameter.device == torch.device(where[int(name.split(".layers.")[1][0])]), name
    want = answer(peft.PeftModel.from_pretrained(plain(folder), adapter))
    for model in (own_adapter, again):  # the CPU's kernels round in another way
        assert torch.allclose(answer(model.eval()), want, atol=1e-5)


@pytest.mark.usefixtures("here")
def test_a_plan_of_the_base_is_one_of_the_model_with_adapters(
    folder: Path, adapter: Path, tmp_path: Path
) -> None:
    want = peft.PeftModel.from_pretrained(plain(folder), adapter)
    size = sum(parameter.nbytes for parameter in plain(folder).parameters())
    plan = planner.plan(folder, max_memory={0: size // 2, 1: size // 5, "cpu": "1GiB"})
    for asked in (plan, dict(plan.device_map)):
        base = spread(folder, "mixed", tmp_path / "o")
        model = peft.PeftModel.from_pretrained(base, adapter, device_map=asked)
        assert model.hf_device_map == dict(plan.device_map)
        assert answer(model).equal(answer(want))


@pytest.mark.sweep
@pytest.mark.usefixtures("here")
def test_adapters_are_loaded_without_memory_of_their_own(folder: Path, adapter: Path, tmp_path: Path) -> None:
    want = answer(peft.PeftModel.from_pretrained(plain(folder), adapter))
    base = spread(folder, "mixed", tmp_path / "o")
    assert answer(peft.PeftModel.from_pretrained(base, adapter, low_cpu_mem_usage=True)).equal(want)
    model = peft.get_peft_model(spread(folder, "mixed", tmp_path / "o"), peft.LoraConfig(**LORA))
    model.load_adapter(adapter, "other", low_cpu_mem_usage=True)
    model.set_adapter("other")
    requires_adapters_beside(model, "mixed")
    assert answer(model).equal(want)


@pytest.mark.sweep
def test_a_model_that_others_have_dispatched_is_left_to_them(
    folder: Path, adapter: Path, tmp_path: Path
) -> None:
    want = answer(peft.PeftModel.from_pretrained(plain(folder), adapter))
    base = spread(folder, "cpu", tmp_path / "o")
    with planner.integrate():
        model = peft.PeftModel.from_pretrained(base, adapter, **own("cpu"))
    assert answer(model).equal(want)


@pytest.mark.usefixtures("here")
def test_what_a_weight_has_become_is_read_at_its_hook(folder: Path, tmp_path: Path) -> None:
    """transformers saves from there what was merged without a new `weights_map`: experts with two adapters are."""
    model = spread(folder, "mixed", tmp_path / "o")
    layer = model.model.layers[3].mlp.up_proj
    with planner.align_module_device(layer), torch.no_grad():
        layer.weight.mul_(2)
    want = plain(folder).model.layers[3].mlp.up_proj.weight.cpu() * 2
    assert layer._hf_hook.weights_map["weight"].equal(want)
    other = copy.deepcopy(model).model.layers[3].mlp.up_proj
    with planner.align_module_device(other), torch.no_grad():
        other.weight.mul_(2)
    assert other._hf_hook.weights_map["weight"].equal(want * 2)
    assert layer._hf_hook.weights_map["weight"].equal(want)


# ---- other architectures and kinds of adapters

ARCHITECTURES: dict[str, Map] = {
    "gpt2": {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True},
    "gemma": {"target_modules": ["q_proj", "down_proj"]},
    "mixtral": {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj"]},
    "qwen3_moe": {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]},
    "t5": {"target_modules": ["q", "wo"], "task_type": "SEQ_2_SEQ_LM"},
}


@pytest.mark.sweep
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        (kind, name)
        for kind in ARCHITECTURES
        for name in MAPS
        # Gradients that reach T5's encoder from two devices are summed in another order.
        if (kind, name) != ("t5", "mixed")
    ],
)
def test_other_architectures(architecture: str, name: str, tmp_path: Path) -> None:
    folder = stored(architecture, tmp_path / "base")
    given = {key: value.to(0) for key, value in inputs_of(architecture).items()}
    kind: Any = type(reference(folder))
    layers = MAPS[name]
    placed = stored_models.device_map(reference(folder), lambda number: layers[number % 4], 0)

    def loaded() -> Any:
        return kind.from_pretrained(folder, device_map=placed, offload_folder=tmp_path / "o").eval()

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(**given).logits.cpu()
        return found

    models, parameters = [], []
    for base in (reference(folder).to(0), loaded()):
        torch.manual_seed(1)
        config = peft.LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", **ARCHITECTURES[architecture]})
        model = peft.get_peft_model(base, config).train()
        trainable = {path: p for path, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(**given).logits.square().mean().backward()
            optimizer.step()
        models.append(model.eval())
        parameters.append({path: p.detach().cpu() for path, p in trainable.items()})
    require_equal(parameters[1], parameters[0])
    want = logits(models[0])
    assert logits(models[1]).equal(want)
    models[0].save_pretrained(tmp_path / "adapter")
    assert logits(peft.PeftModel.from_pretrained(loaded(), tmp_path / "adapter")).equal(want)
    itself = loaded()
    itself.load_adapter(str(tmp_path / "adapter"))
    assert logits(itself).equal(want)
    merged, want_merged = (model.merge_and_unload() for model in reversed(models))
    assert logits(merged).equal(logits(want_merged))
    for each, into in ((merged, tmp_path / "s"), (want_merged, tmp_path / "s2")):
        each.save_pretrained(into)
    require_equal(state(reference(tmp_path / "s")), state(reference(tmp_path / "s2")))


OTHERS: dict[str, Callable[[], peft.PeftConfig]] = {
    "ia3": lambda: peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "vera": lambda: peft.VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "o_proj"], r=4),
    "loha": lambda: peft.LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "oft": lambda: peft.OFTConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], oft_block_size=4),
    "delora": lambda: peft.DeloraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "hra": lambda: peft.HRAConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "miss": lambda: peft.MissConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "fourier": lambda: peft.FourierFTConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
}


@pytest.mark.sweep
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", MAPS)
def test_other_adapters_are_trained_and_merged(name: str, kind: str, folder: Path, tmp_path: Path) -> None:
    models = []
    for base in (plain(folder), spread(folder, name, tmp_path / "o")):
        torch.manual_seed(1)
        models.append(peft.get_peft_model(base, OTHERS[kind]()))
    want, model = models
    require_equal(trained(model), trained(want))
    assert answer(model).equal(answer(want))
    want, model = want.merge_and_unload(), model.merge_and_unload()
    assert answer(model).equal(answer(want))
    require_equal(reloaded(model, tmp_path / "s"), reloaded(want, tmp_path / "s2"))


# ---- Trainer


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", EACH_MAP)
def test_the_trainer_trains_adapters(name: str, folder: Path, tmp_path: Path) -> None:
    """Undispatched on the CPU, where the Trainer moves it."""
    found = []
    plain_base = AutoModelForCausalLM.from_pretrained(folder)
    for base in (plain_base, spread(folder, "two", tmp_path / "o"), spread(folder, name, tmp_path / "o")):
        torch.manual_seed(1)
        model = peft.get_peft_model(base, peft.LoraConfig(**LORA, init_lora_weights="gaussian"))
        settings = TrainingArguments(
            output_dir=str(tmp_path / "trainer"),
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=0.1,
            optim="sgd",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        data = [{"input_ids": IDS[0] + number, "labels": IDS[0] + number} for number in range(4)]
        trainer = Trainer(model=model, args=settings, train_dataset=data)
        trainer.train()
        found.append({path: p.detach().cpu() for path, p in model.named_parameters() if p.requires_grad})
    require_equal(found[2], found[1])
    assert all(found[2][path].allclose(found[0][path], atol=1e-5) for path in found[0])
