"""Our dispatch in the place of accelerate's: what lies in files stays there, also when others take the hooks off and dispatch again; it is
saved into these very files, and comes back."""

from __future__ import annotations

import contextvars
import copy
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate.hooks
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaForCausalLM

import planner
from planner.compat.huggingface.placed import place
from planner.dispatching.offload.weight_files import OffloadedWeightsLoader
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.errors import PlanMismatchError
from planner.loading.weights import FileWeights
from planner.plans.device_map import DeviceMap
from rig import Accelerators
from stored_models import device_map, inputs_of, reference, stored
from tiny_models import SIZES, SPECIAL, WORDS, built, mapped

IDS = torch.arange(3, 13)[None]
LAYERS: dict[str, tuple[int | str, ...]] = {
    "two": (0, 0, 1, 1),
    "cpu": (0, "cpu", 0, "cpu"),
    "disk": (0, "disk", 0, "disk"),
    "mixed": (0, "cpu", 1, "disk"),
}


@pytest.fixture(autouse=True)
def here() -> Iterator[planner.Integration]:
    with warnings.catch_warnings(), planner.integrate() as here:
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
        yield here


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def expected(folder: Path, registered_accelerators: Accelerators) -> torch.Tensor:
    return answer(reference(folder).to(0))


@torch.no_grad()
def answer(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(IDS.to(0)).logits.cpu()
    return logits


def loaded(folder: Path, layers: tuple[int | str, ...], **settings: Any) -> Any:
    return LlamaForCausalLM.from_pretrained(folder, device_map=mapped("llama", layers), **settings)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each weight is asked for."""
    found: Counter[str] = Counter()
    for kind in (FileWeights, OffloadedWeightsLoader):
        usual = kind.__getitem__

        def counted(self: Any, name: str, usual: Any = usual) -> Any:
            found[name] += 1
            return usual(self, name)

        monkeypatch.setattr(kind, "__getitem__", counted)
    yield found


@pytest.mark.parametrize("where", LAYERS)
def test_a_model_that_is_loaded_is_dispatched_by_us_and_reads_nothing_for_it(
    where: str, folder: Path, expected: torch.Tensor, reads: Counter[str]
) -> None:
    model = loaded(folder, LAYERS[where])
    assert isinstance(model._hf_hook, planner.AlignDevicesHook)
    assert not reads
    assert answer(model).equal(expected)
    assert model._hf_hook.prefetcher is not None or "disk" not in LAYERS[where]


def test_offloaded_blocks_run_where_the_plan_says(folder: Path, expected: torch.Tensor) -> None:
    device_map = DeviceMap(
        mapped("llama", (0, 0, "cpu", "disk")), {"model.layers.2": "cpu", "model.layers.3": 1}
    )  # type: ignore[arg-type]
    model = LlamaForCausalLM.from_pretrained(folder, device_map=device_map)
    ran: dict[str, Any] = {}
    for name in ("2", "3"):
        layer = model.get_submodule(f"model.layers.{name}.mlp.act_fn")
        layer.register_forward_pre_hook(lambda _, args, name=name: ran.update({name: args[0].device}))
    assert torch.allclose(answer(model), expected, atol=1e-5)
    assert ran == {"2": torch.device("cpu"), "3": torch.device("virtual:1")}


def test_what_lies_on_the_cpu_alone_runs_where_the_plan_says(
    folder: Path, expected: torch.Tensor, here: planner.Integration
) -> None:
    parts = ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head")
    plan = planner.plan(folder, max_memory={0: "1MiB", "cpu": "1GiB"}, pin=dict.fromkeys(parts, "cpu"))
    assert set(plan.device_map.values()) == {"cpu"}
    for given in (plan, plan.device_map):
        model = LlamaForCausalLM.from_pretrained(folder, device_map=given)
        assert model.hf_device_map == plan.device_map
        assert answer(model).equal(expected)
    assert here.plans == (plan,)


class Around(nn.Module):
    """What a library puts around a model of another one, such as PEFT."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("where", LAYERS)
def test_a_model_whose_hooks_were_taken_off_is_dispatched_again_without_a_folder(
    where: str, folder: Path, expected: torch.Tensor, reads: Counter[str], here: planner.Integration
) -> None:
    model = loaded(folder, LAYERS[where])
    if "disk" in LAYERS[where]:
        rows = model.model.layers[3].mlp.up_proj._hf_hook.weights_map.dataset.index
        assert rows["model.layers.3.mlp.up_proj.weight"]["safetensors_file"].endswith(".safetensors")
    accelerate.hooks.remove_hook_from_submodules(model)
    weight = model.model.layers[3].mlp.up_proj.weight
    assert is_offloaded(weight) is (LAYERS[where][3] == "disk")
    outer = Around(model)
    device_map = {f"inner.{name}": device for name, device in mapped("llama", LAYERS[where]).items()}
    place(here, accelerate.dispatch_model, outer, device_map=device_map)
    assert not reads
    assert answer(outer).equal(expected)
    if "disk" in LAYERS[where]:
        rows = model.model.layers[3].mlp.up_proj._hf_hook.weights_map.dataset.index
        assert "inner.model.layers.3.mlp.up_proj.weight" in rows
        assert model.model.layers[3].mlp.up_proj._hf_hook.prefetcher is None
        assert outer._hf_hook.prefetcher is not None
    assert model.hf_device_map == mapped("llama", LAYERS[where])


def test_weights_on_disk_have_their_values_when_their_hooks_are_gone(
    folder: Path, expected: torch.Tensor
) -> None:
    plain = reference(folder)
    model = loaded(folder, LAYERS["mixed"])
    accelerate.hooks.remove_hook_from_submodules(model)
    found, want = planner.state_dict(model), plain.state_dict()
    assert found.keys() == want.keys() and all(found[name].equal(want[name]) for name in want)
    planner.dispatch(model, mapped("llama", (0, 1, 0, 1)))
    weight = model.model.layers[3].mlp.up_proj.weight
    assert isinstance(weight, nn.Parameter) and weight.requires_grad and weight.device.index == 1
    assert answer(model).equal(expected)


@pytest.mark.parametrize("where", LAYERS)
def test_undispatching_brings_everything_to_the_cpu(where: str, folder: Path) -> None:
    plain = reference(folder)
    model = planner.undispatch(loaded(folder, LAYERS[where]))
    assert not hasattr(model, "hf_device_map")
    named = dict(model.named_parameters())
    assert all(each.device.type == "cpu" and type(each) is nn.Parameter for each in named.values())
    assert all(each.requires_grad and each.equal(named[name]) for name, each in plain.named_parameters())
    with torch.no_grad():
        assert model(**inputs_of("llama")).logits.equal(plain(**inputs_of("llama")).logits)


def test_what_no_row_names_stays_in_memory(folder: Path, here: planner.Integration) -> None:
    """A tensor of a part on disk that no row names, as one that was not in the checkpoint, stays in memory."""
    model = loaded(folder, LAYERS["disk"])
    accelerate.hooks.remove_hook_from_submodules(model)
    with torch.no_grad():
        added = nn.Parameter(torch.full((32,), 2.0))
    model.model.layers[3].input_layernorm.weight = added
    plain: Any = reference(folder)
    plain.model.layers[3].input_layernorm.weight = nn.Parameter(added.detach().clone())
    place(
        here,
        accelerate.dispatch_model,
        model,
        mapped("llama", LAYERS["disk"]),
        offload_index={"other": {}},
    )
    assert answer(model).equal(answer(plain.to(0)))


@pytest.mark.parametrize(("first", "then"), [("mixed", "disk"), ("disk", "mixed"), ("disk", "disk")])
def test_what_lies_in_files_stays_there_under_another_plan(
    first: str, then: str, folder: Path, expected: torch.Tensor, reads: Counter[str]
) -> None:
    model = loaded(folder, LAYERS[first])
    if (first, then) == ("mixed", "disk"):
        with pytest.raises(planner.PlanMismatchError, match=r"'model\.layers\.1'"):
            planner.dispatch(model, mapped("llama", LAYERS[then]))
        assert answer(model).equal(expected)
        return
    planner.dispatch(model, mapped("llama", LAYERS[then]))
    in_files = {name for name in reads if ".layers.3." in name}
    assert not in_files and answer(model).equal(expected)
    assert model._hf_hook.prefetcher is not None
    planner.undispatch(model)
    assert {tensor.device.type for tensor in model.parameters()} == {"cpu"}


def test_modules_that_were_swapped_get_borders_by_the_same_plan(folder: Path, expected: torch.Tensor) -> None:
    """Quantising tools put modules of their own in the place of others."""
    pins = {"model.layers.1": "disk", "model.layers.2": 1, "model.layers.3": 1}
    plan = planner.plan(folder, max_memory={0: "1MiB", 1: "1MiB", "disk": "1GiB"}, pin=pins)
    model = LlamaForCausalLM.from_pretrained(folder, device_map=plan)
    found = planner.plan_of(model)
    assert found is plan
    plain: Any = reference(folder)
    model.model.layers[2] = plain.model.layers[2]
    planner.dispatch(model, found)
    assert model.model.layers[2].mlp.up_proj.weight.device.index == 1
    assert model.model.layers[2]._hf_hook.execution_device.index == 1
    assert answer(model).equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_written_into_a_weight_on_disk_is_there_under_the_next_plan(
    dtype: torch.dtype, folder: Path
) -> None:
    """Also where files hold another dtype, and so give the old values anew."""
    plain: Any = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    model = loaded(folder, LAYERS["disk"], dtype=dtype)
    with torch.no_grad():
        plain.model.layers[3].mlp.up_proj.weight.mul_(2)
        with planner.align_module_device(model.model.layers[3].mlp.up_proj):
            model.model.layers[3].mlp.up_proj.weight.mul_(2)
    wanted = answer(plain.to(0))
    assert answer(model).equal(wanted)
    planner.dispatch(model, mapped("llama", (0, 1, 0, "disk")))
    assert answer(model).equal(wanted)
    accelerate.hooks.remove_hook_from_submodules(model)
    planner.dispatch(model, mapped("llama", (0, 1, "cpu", "disk")))
    assert answer(model).equal(wanted)
    assert answer(planner.undispatch(model).to(0)).equal(wanted)


@pytest.mark.parametrize("device", ["cpu", "disk"])
def test_an_offloaded_weight_says_meta_outside_of_forwards_as_transformers_asks(
    device: str, folder: Path, expected: torch.Tensor
) -> None:
    device_map = {**mapped("llama", (0, 0, 1, 1)), "model.embed_tokens": device}
    model = LlamaForCausalLM.from_pretrained(folder, device_map=device_map)
    assert model.model.embed_tokens.weight.device == torch.device("meta")
    with torch.no_grad():
        assert model(IDS.to(0)).logits.cpu().equal(expected)


def test_weights_on_disk_come_back_when_their_hooks_are_gone(folder: Path, expected: torch.Tensor) -> None:
    model = loaded(folder, LAYERS["mixed"])
    accelerate.hooks.remove_hook_from_submodules(model)
    twin = copy.deepcopy(model)
    plain = dict(reference(folder).named_parameters())
    for each in (model, twin):
        planner.undispatch(each)
        found = dict(each.named_parameters())
        assert all(type(found[name]) is nn.Parameter and found[name].requires_grad for name in plain)
        assert all(found[name].equal(tensor) for name, tensor in plain.items())


def test_a_model_inside_without_tensors_need_not_be_in_the_map() -> None:
    outer = nn.Sequential(nn.Linear(2, 2), planner.dispatch(nn.ReLU(), {"": 0}), nn.Linear(2, 2))
    planner.dispatch(outer, {"0": 0, "2": 1})
    assert outer(torch.ones(1, 2, device=0)).device.index == 0


# ---- Dispatched by accelerate


def by_accelerate(folder: Path, where: str, offload_folder: Path) -> Any:
    """Loaded outside of the integration."""
    model = contextvars.Context().run(loaded, folder, LAYERS[where], offload_folder=offload_folder)
    assert not isinstance(model._hf_hook, planner.AlignDevicesHook)
    return model


@pytest.mark.parametrize("where", ["two", "cpu", "mixed"])
def test_a_dispatch_of_accelerates_is_undone_as_well(where: str, folder: Path, tmp_path: Path) -> None:
    model = planner.undispatch(by_accelerate(folder, where, tmp_path))
    plain, named = reference(folder), dict(model.named_parameters())
    assert not any("_hf_hook" in vars(module) or "forward" in vars(module) for module in model.modules())
    assert not hasattr(model, "hf_device_map") and not {"to", "cuda"} & vars(model).keys()
    for name, each in plain.named_parameters():
        assert each.equal(named[name]) and each.requires_grad and type(named[name]) is torch.nn.Parameter
    with torch.no_grad():
        assert model(**inputs_of("llama")).logits.equal(plain(**inputs_of("llama")).logits)
    with pytest.raises(PlanMismatchError, match="not dispatched"):
        planner.undispatch(model)
    planner.dispatch(model, mapped("llama", (0, "cpu", 1, 1)))


def test_what_cannot_be_read_leaves_the_dispatch_of_accelerates_as_it_was(
    folder: Path, tmp_path: Path
) -> None:
    model = by_accelerate(folder, "mixed", tmp_path)
    hook = model.model.layers[3].mlp.up_proj._hf_hook
    weights, hook.weights_map = hook.weights_map, {}
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    with pytest.raises(planner.OffloadError, match=r"layers\.3\.mlp\.up_proj\.weight"):
        planner.undispatch(model)
    assert before == {name: id(tensor) for name, tensor in model.named_parameters()}
    hook.weights_map = weights
    with torch.no_grad():
        wanted = reference(folder).to(0)(input_ids=inputs_of("llama")["input_ids"].to(0)).logits
        assert model(input_ids=inputs_of("llama")["input_ids"].to(0)).logits.equal(wanted)


# ---- Classes that do what a border does not expect


def saved(model: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def both(
    make: Callable[[], Any], folder: Path, layers: Callable[[int], Any], outer: Any = 0, **extra: Any
) -> tuple[Any, Any]:
    """A model on one accelerator, and the same dispatched."""
    torch.manual_seed(0)
    model = make()
    cls, path = type(model), saved(model, folder)
    plain = cls.from_pretrained(path).to(0).eval()
    spread = cls.from_pretrained(path, device_map={**device_map(model, layers, outer), **extra})
    return plain, spread


def gemma_3n() -> nn.Module:
    return transformers.Gemma3nForCausalLM(
        transformers.Gemma3nTextConfig(
            **SIZES,
            **SPECIAL,
            head_dim=8,
            num_kv_shared_layers=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
            sliding_window=4,
            vocab_size_per_layer_input=WORDS,
            hidden_size_per_layer_input=8,
            laurel_rank=4,
            altup_num_inputs=2,
            activation_sparsity_pattern=[0.0] * 4,
        )
    )


def gemma_4() -> nn.Module:
    return transformers.Gemma4ForCausalLM(
        transformers.Gemma4TextConfig(
            **SIZES,
            **SPECIAL,
            head_dim=8,
            global_head_dim=8,
            num_kv_shared_layers=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
            sliding_window=4,
            vocab_size_per_layer_input=WORDS,
            hidden_size_per_layer_input=8,
        )
    )


WHERE: dict[str, Callable[[int], Any]] = {
    "two": lambda number: (0, 0, 1, 1)[number % 4],
    "disk": lambda number: (0, "disk")[number % 2],
    "alternating": lambda number: (0, 1, 0, 1)[number % 4],
    "mixed": lambda number: (0, "cpu", 1, "disk")[number % 4],
}


@pytest.mark.parametrize(
    ("make", "where"), [(gemma_3n, "two"), (gemma_4, "two"), (gemma_4, "mixed"), (gemma_4, "alternating")]
)
@torch.no_grad()
def test_what_a_block_adds_to_a_container_the_next_ones_find(
    make: Callable[[], Any], where: str, tmp_path: Path
) -> None:
    plain, spread = both(make, tmp_path, WHERE[where])
    assert spread(IDS.to(0)).logits.equal(plain(IDS.to(0)).logits)
    assert spread.generate(IDS.to(0), max_new_tokens=4, do_sample=False).equal(
        plain.generate(IDS.to(0), max_new_tokens=4, do_sample=False)
    )


def mbart() -> nn.Module:
    sizes = {
        "d_model": 32,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
    }
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = transformers.MBartConfig(
        vocab_size=WORDS, **sizes, **heads, max_position_embeddings=32, **SPECIAL
    )
    return transformers.MBartForConditionalGeneration(config)


@torch.no_grad()
def test_a_tensor_of_the_model_itself_is_used_where_its_output_is_made(tmp_path: Path) -> None:
    plain, spread = both(mbart, tmp_path, WHERE["two"], final_logits_bias=1)
    assert spread(IDS.to(0)).logits.equal(plain(IDS.to(0)).logits)
    assert spread.generate(IDS.to(0), max_new_tokens=4).equal(plain.generate(IDS.to(0), max_new_tokens=4))


def detr() -> nn.Module:
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "num_queries": 4, "d_model": 32}
    return transformers.DetrForSegmentation(
        transformers.DetrConfig(backbone_config=backbone, **layers, **heads)
    )


@pytest.mark.parametrize("outer", ["cpu", "disk"])
@torch.no_grad()
def test_weights_that_are_read_outside_of_their_modules_are_fetched(outer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = detr()
    path, picture = saved(model, tmp_path), torch.rand(1, 3, 64, 64)
    plain = transformers.DetrForSegmentation.from_pretrained(path).to(0)
    spread = transformers.DetrForSegmentation.from_pretrained(
        path, device_map={"": 0, "detr.model": outer, "mask_head": outer, "bbox_attention": outer}
    )
    found, want = spread(picture.to(0)), plain(picture.to(0))
    assert found.pred_masks.equal(want.pred_masks) and found.logits.equal(want.logits)


def rwkv() -> nn.Module:
    return transformers.RwkvForCausalLM(
        transformers.RwkvConfig(
            vocab_size=WORDS, context_length=32, hidden_size=32, num_hidden_layers=4, rescale_every=2
        )
    )


@torch.no_grad()
def test_weights_that_are_written_to_outside_of_their_modules_are_an_error(tmp_path: Path) -> None:
    _, spread = both(rwkv, tmp_path, WHERE["mixed"])
    with pytest.raises(planner.OffloadError, match="offloaded"):
        spread(IDS.to(0))


class WithProperty(nn.Module):
    """As sentence-transformers has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    @property
    def _no_split_modules(self) -> list[str]:
        return ["Linear"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_classes_that_must_not_be_split_may_be_told_by_the_instance() -> None:
    model = planner.dispatch(WithProperty(), {"layers.0": 0, "layers.1": 1})
    assert model(torch.ones(1, 4, device=0)).device.index == 0


@pytest.mark.sweep  # the compiler takes half of what all these tests may take
@torch.no_grad()
def test_a_model_over_two_devices_compiles_into_one_graph(
    virtual_accelerators: Accelerators, tmp_path: Path
) -> None:
    plain, spread = both(
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **SPECIAL)),
        tmp_path,
        WHERE["two"],
    )
    compiled = torch.compile(spread, fullgraph=True, backend="eager")
    assert compiled(IDS.to(0), use_cache=False).logits.equal(plain(IDS.to(0), use_cache=False).logits)


# ---- Saved and trained


def checkpoint(name: str, folder: Path) -> Path:
    if name != "llava":
        return stored(name, folder)
    model: Any = built(name)
    model.save_pretrained(folder)
    return folder


def streamed(folder: Path, layers: Any, offload_folder: Path) -> Any:
    plain = reference(folder)
    return type(plain).from_pretrained(
        folder, device_map=device_map(plain, layers, 0), offload_folder=offload_folder
    )


@torch.no_grad()
def answer_of(model: Any, name: str, device: Any = 0) -> torch.Tensor:
    given = {key: tensor.to(device) for key, tensor in inputs_of(name).items()}
    logits: torch.Tensor = model(**given).logits.cpu()
    return logits


@pytest.mark.parametrize(
    ("name", "where", "size"),
    [
        ("llama", "disk", "5GB"),
        ("llama", "mixed", "60KB"),
        ("mixtral", "disk", "60KB"),
        ("mixtral", "mixed", "5GB"),
        ("llava", "disk", "60KB"),
        ("llava", "mixed", "5GB"),
    ],
)
def test_a_model_is_saved_into_the_folder_that_it_streams_from(
    name: str, where: str, size: str, tmp_path: Path
) -> None:
    folder = checkpoint(name, tmp_path / "model")
    before = reference(folder)
    wanted = answer_of(before.to(0), name)
    model = streamed(folder, WHERE[where], tmp_path / "offload")
    model.save_pretrained(folder, max_shard_size=size)
    assert answer_of(model, name).equal(wanted)
    state, again = before.cpu().state_dict(), reference(folder).state_dict()
    assert state.keys() == again.keys() and all(state[key].equal(again[key]) for key in state)


def test_a_class_that_cannot_save_itself_is_saved_one_tensor_at_a_time(tmp_path: Path) -> None:
    folder = checkpoint("llama", tmp_path / "model")
    model = streamed(folder, WHERE["mixed"], tmp_path / "offload")
    (tmp_path / "saved").mkdir()
    state = planner.state_dict(model)
    files = {
        name: f"model-{number:05}-of-{len(state):05}.safetensors" for number, name in enumerate(state, 1)
    }
    for name, file in files.items():
        save_file({name: state[name].contiguous()}, tmp_path / "saved" / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (tmp_path / "saved" / "model.safetensors.index.json").write_text(json.dumps(index))
    model.config.save_pretrained(tmp_path / "saved")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    assert answer_of(again.to(0), "llama").equal(answer_of(reference(folder).to(0), "llama"))


def test_training_an_offloaded_weight_is_an_error_at_the_first_step(tmp_path: Path) -> None:
    """accelerate trains everything else, and says nothing."""
    model = streamed(checkpoint("llama", tmp_path / "model"), WHERE["mixed"], tmp_path / "offload").train()
    ids = inputs_of("llama")["input_ids"].to(0)
    with pytest.raises(planner.OffloadError, match=r"offloaded and trainable.*requires_grad_\(False\)"):
        model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is None for parameter in model.model.layers[1].parameters())
