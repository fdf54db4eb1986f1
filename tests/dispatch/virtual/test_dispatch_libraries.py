"""What transformers, PEFT and accelerate do with a dispatched model: they find what they look for, and nothing breaks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import accelerate
import accelerate.hooks
import peft
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    DynamicCache,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    QuantizedCache,
    StaticCache,
)

import planner
from planner.dispatching.tensors.placeholder import is_offloaded
from rig import Accelerators
from tiny_models import TINY, built, mapped

MIXED = mapped("llama", (0, "cpu", 1, "cpu"))
IDS = torch.arange(3, 13)[None]


def dispatched() -> Any:
    return planner.dispatch(built("llama"), MIXED)


@torch.no_grad()
def answer(model: nn.Module) -> torch.Tensor:
    logits: torch.Tensor = model(IDS.to(0)).logits.cpu()
    return logits


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    return answer(built("llama").to(0))


GENERATION: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "offloaded_static": {"cache_implementation": "offloaded_static"},
    "offloaded": {"cache_implementation": "offloaded"},
    "none": {"use_cache": False},
    "beams": {"num_beams": 3},
    "sampled": {"do_sample": True, "top_k": 5},
    "batch": {"num_return_sequences": 2, "do_sample": True},
    "assisted": {"prompt_lookup_num_tokens": 2},
    "scores": {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True},
}


@pytest.mark.parametrize("kind", GENERATION)
@torch.no_grad()
def test_generate_with_every_kind_of_cache(kind: str) -> None:
    results = []
    for model in (built("llama").to(0), dispatched()):
        torch.manual_seed(0)
        options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, **GENERATION[kind]}
        try:
            made = model.generate(IDS.to(0), **options)
        except Exception as error:
            made = f"{type(error).__name__}: {error}"
        results.append(made if isinstance(made, torch.Tensor | str) else made.sequences)
    plain, spread = results
    if isinstance(plain, str):
        pytest.skip(f"the undispatched model cannot do it on this device either: {plain[:200]}")
    assert isinstance(spread, torch.Tensor), spread
    assert spread.equal(plain)


@torch.no_grad()
def test_a_cache_that_is_handed_in_is_filled_and_stays_the_callers() -> None:
    plain, spread = built("llama").to(0), dispatched()
    for cache in (DynamicCache(), StaticCache(spread.config, max_cache_len=16)):
        theirs = copy.deepcopy(cache)
        want, found = plain(IDS.to(0), past_key_values=theirs), spread(IDS.to(0), past_key_values=cache)
        assert found.past_key_values is cache
        assert found.logits.equal(want.logits)
        assert cache.get_seq_length() == theirs.get_seq_length() == 10
        assert [layer.keys.device.index for layer in cache.layers] == [0, 0, 1, 0]
        step = torch.tensor([[5]], device=0)
        assert spread(step, past_key_values=cache).logits.equal(plain(step, past_key_values=theirs).logits)
    assert QuantizedCache.__name__.endswith("Cache")  # how a border knows caches of any library


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_save_pretrained_writes_offloaded_weights(max_shard_size: str, tmp_path: Path) -> None:
    model, plain = dispatched(), built("llama")
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    before, after = plain.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    assert is_offloaded(model.model.layers[1].mlp.up_proj.weight)


@pytest.mark.parametrize("name", TINY)
def test_the_state_dict_has_all_values(name: str) -> None:
    plain = built(name)
    model = planner.dispatch(built(name), mapped(name, (0, "cpu", 1, "cpu"), outer="cpu"))
    found, want = planner.state_dict(model), plain.state_dict()
    assert list(found) == list(want)
    assert all(found[key].equal(want[key]) for key in want)
    theirs = planner.get_state_dict_offloaded_model(model)
    assert theirs.keys() == want.keys() and all(theirs[key].equal(want[key]) for key in want)
    twin = built(name).requires_grad_(False)
    for parameter in twin.parameters():
        parameter.zero_()
    twin.load_state_dict(dict(found))
    assert all(twin.state_dict()[key].equal(want[key]) for key in want)


def adapted(model: nn.Module) -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def dispatched_with_adapters() -> Any:
    model = adapted(built("llama"))
    base = {f"base_model.model.{key}": device for key, device in MIXED.items()}
    return planner.dispatch(model, {**base, **adapter_keys(model)})


def adapter_keys(model: nn.Module) -> dict[str, int]:
    """Adapters of offloaded layers run, and are trained, where their layer runs."""
    return {
        name: 0
        for name, p in model.named_parameters()
        if "lora_" in name and (".layers.1." in name or ".layers.3." in name)
    }


def test_adapters_on_an_offloaded_frozen_base_train_as_undispatched() -> None:
    """Three steps of SGD: adapters, and their gradients, equal bit for bit."""
    plain, spread = adapted(built("llama")).to(0), dispatched_with_adapters()
    for model in (plain, spread):
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(IDS.to(0)).logits.square().mean().backward()
            optimizer.step()
    want = {name: p for name, p in plain.named_parameters() if "lora_" in name}
    found = {name: p for name, p in spread.named_parameters() if "lora_" in name}
    assert want.keys() == found.keys() and len(want) == 16
    for name, parameter in want.items():
        assert found[name].cpu().equal(parameter.cpu()), name
        assert found[name].grad.cpu().equal(parameter.grad.cpu()), name


def test_adapters_that_are_added_after_dispatching_train_as_undispatched() -> None:
    """PEFT makes an adapter where its layer's weight is: for an offloaded one, where its layer runs."""
    plain, spread = adapted(built("llama")).to(0), adapted(dispatched())
    adapters = {name: p for name, p in spread.named_parameters() if "lora_" in name}
    assert {p.device for p in adapters.values()} == {torch.device(0), torch.device(1)}
    found = dict(plain.named_parameters())
    with torch.no_grad():  # each adapter is drawn where it lies
        for name, parameter in adapters.items():
            parameter.copy_(found[name])
    for model in (plain, spread):
        model.train()
        model(IDS.to(0)).logits.square().mean().backward()
    assert len(adapters) == 16
    for name, parameter in adapters.items():
        assert torch.allclose(parameter.grad.cpu(), found[name].grad.cpu(), atol=1e-6), name


def test_adapters_that_are_made_on_the_meta_device_are_an_error() -> None:
    """What is made without values is told from what is offloaded."""
    model = planner.cpu_offload(built("llama"), "cpu")
    config = peft.LoraConfig(r=2, target_modules=["down_proj"])
    peft.inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
    with pytest.raises(planner.OffloadError, match=r"lora_A.*before dispatching"):
        model(IDS)


@torch.no_grad()
def test_adapters_that_peft_injects_are_made_where_layers_run() -> None:
    plain, model = built("llama"), planner.cpu_offload(built("llama"), "cpu")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["down_proj"]), model)
    made = [tensor for name, tensor in model.named_parameters() if "lora_" in name]
    assert made and {tensor.device.type for tensor in made} == {"cpu"}
    assert model(IDS).logits.equal(plain(IDS).logits)  # an adapter adds nothing before it has learnt


@torch.no_grad()
def test_adapters_can_be_merged_into_offloaded_weights() -> None:
    """PEFT calls the hooks by hand, and writes a new weights_map."""
    plain, spread = adapted(built("llama")).to(0), dispatched_with_adapters()
    assert answer(spread).equal(answer(plain))
    for model in (plain, spread):
        model.merge_adapter()
    assert answer(spread).equal(answer(plain))
    assert is_offloaded(spread.base_model.model.model.layers[1].mlp.down_proj.base_layer.weight)
    for model in (plain, spread):
        model.unmerge_adapter()
    assert answer(spread).equal(answer(plain))


def test_our_hooks_are_accelerates(expected: torch.Tensor) -> None:
    model = dispatched()
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        if hook is not None:
            assert isinstance(hook, accelerate.hooks.AlignDevicesHook), name
    leaf = model.model.layers[1].mlp.up_proj
    assert accelerate.utils.has_offloaded_params(leaf) and planner.has_offloaded_params(leaf)
    assert leaf._hf_hook.original_devices == {"weight": torch.device("cpu")}
    assert leaf._hf_hook.weights_map["weight"].equal(built("llama").model.layers[1].mlp.up_proj.weight)
    assert not leaf._hf_hook.weights_map.dataset.index
    assert model.hf_device_map == MIXED and model._hf_hook.io_same_device
    with accelerate.utils.align_module_device(leaf, "cpu"):
        assert leaf.weight.device == torch.device("cpu")
    assert is_offloaded(leaf.weight) and answer(model).equal(expected)


def test_accelerate_removes_our_hooks(expected: torch.Tensor) -> None:
    model, plain = dispatched(), built("llama")
    accelerate.hooks.remove_hook_from_submodules(model)
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(is_offloaded(p) for p in model.parameters())
    offloaded = model.model.layers[1].mlp.up_proj.weight
    assert offloaded.device == torch.device("cpu")
    assert offloaded.equal(plain.model.layers[1].mlp.up_proj.weight)
    assert answer(model.to(0)).equal(expected)
    planner.dispatch(model, MIXED)
    assert answer(model).equal(expected)


class Doubling(accelerate.hooks.ModelHook):
    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return output * 2


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("path", ["model.layers.1.mlp.up_proj", "model.layers.1.mlp", "lm_head"])
def test_accelerate_adds_hooks_to_our_modules(path: str, append: bool) -> None:
    plain, model = built("llama").to(0), dispatched()
    before = answer(plain)
    for each in (plain, model):
        accelerate.hooks.add_hook_to_module(each.get_submodule(path), Doubling(), append=append)
    assert answer(model).equal(answer(plain)) and not answer(plain).equal(before)
    for each in (plain, model):
        accelerate.hooks.remove_hook_from_module(each.get_submodule(path))
    planner.undispatch(model)
    assert not any(
        "forward" in vars(m) and type(m.forward).__module__.startswith("planner") for m in model.modules()
    )
    assert not any(is_offloaded(p) for p in model.parameters())
    assert answer(model.to(0)).equal(before)


def test_hooks_fire_by_hand(expected: torch.Tensor) -> None:
    """transformers' force_accelerate_hooks and PEFT call them so."""
    model = dispatched()
    leaf = model.model.layers[1].mlp.up_proj
    leaf._hf_hook.pre_forward(leaf)
    assert not is_offloaded(leaf.weight)
    leaf._hf_hook.post_forward(leaf, ())
    assert is_offloaded(leaf.weight) and answer(model).equal(expected)


@torch.no_grad()
def test_a_leaf_of_an_offloaded_block_can_be_called_alone() -> None:
    model, x = dispatched(), torch.ones(1, 32)
    want = built("llama").to(0).model.layers[1].mlp.up_proj(x.to(0))
    assert model.model.layers[1].mlp.up_proj(x).equal(want)
    assert is_offloaded(model.model.layers[1].mlp.up_proj.weight)


def test_resized_embeddings_of_a_dispatched_model() -> None:
    """transformers hands the old embedding's hook to the new one."""
    plain, model = built("llama").to(0), dispatched()
    for each in (plain, model):
        torch.manual_seed(0)
        each.resize_token_embeddings(70, mean_resizing=False)
    with torch.no_grad():
        assert model(IDS).logits.shape == plain(IDS.to(0)).logits.shape == (1, 10, 70)
        assert model(IDS).logits[..., :64].equal(plain(IDS.to(0)).logits[..., :64].cpu())


@torch.no_grad()
def test_from_pretrained_models_dispatched_by_accelerate_can_be_taken_over(expected: torch.Tensor) -> None:
    model = accelerate.dispatch_model(built("llama"), dict(MIXED), skip_keys="past_key_values")
    with pytest.raises(planner.PlanMismatchError, match=r"planner\.undispatch\(model\) first"):
        planner.dispatch(model, MIXED)
    planner.dispatch(planner.undispatch(model), MIXED)
    assert answer(model).equal(expected)


def weights_of(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    return [dict(planner.state_dict(model)), planner.get_state_dict_offloaded_model(model)]


def test_models_dispatched_by_accelerate_tell_their_weights(tmp_path: Path) -> None:
    """Their hooks know where offloaded weights are: on the CPU, in files, or below a hook for many modules."""
    want = built("llama").state_dict()
    on_disk = mapped("llama", (0, "disk", 1, "cpu"))
    for model in (
        accelerate.dispatch_model(built("llama"), dict(MIXED), main_device=0),
        accelerate.dispatch_model(built("llama"), on_disk, main_device=0, offload_dir=tmp_path),
        accelerate.cpu_offload(built("llama"), 0),
        accelerate.cpu_offload(built("llama"), 0, preload_module_classes=["LlamaDecoderLayer"]),
    ):
        for found in weights_of(model):
            assert found.keys() == want.keys()
            assert all(found[name].equal(want[name]) for name in want)
    with planner.init_empty_weights():
        empty = nn.Linear(2, 2)
    with pytest.raises(planner.OffloadError, match=r"'weight' has no values"):
        dict(planner.state_dict(empty))


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y * self.scale if hasattr(self, "scale") else y


@pytest.mark.parametrize("has_run", [False, True])
@torch.no_grad()
def test_a_parameter_added_without_values_is_named(has_run: bool) -> None:
    """As compressed-tensors adds one: its values beside those of the hook, "meta" in the module."""
    model = nn.Sequential(Scaled(2, 2), Scaled(2, 2))
    planner.dispatch_model(model, {"0": 0, "1": "cpu"}, main_device=0, state_dict=model.state_dict())
    if has_run:
        model(torch.ones(1, 2))
    weights = model[1]._hf_hook.weights_map
    weights.dataset.state_dict[weights.prefix + "scale"] = torch.ones(2)
    model[1].register_parameter("scale", nn.Parameter(torch.ones(2, device="meta")))
    with pytest.raises(planner.OffloadError, match=r"'1\.scale' .* has no values"):
        model(torch.ones(1, 2))


def mamba() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 3}
    return MambaForCausalLM(MambaConfig(**sizes, time_step_rank=4, pad_token_id=0)).eval()


def test_an_error_in_a_layer_whose_hooks_are_called_by_hand(virtual_accelerators: Accelerators) -> None:
    """transformers calls them without `finally`; nobody else would let those weights go."""
    model, want = mamba(), answer(mamba().to(0))
    parts = {f"backbone.layers.{number}": device for number, device in enumerate((0, "cpu", 0))}
    around: dict[str, Any] = dict.fromkeys(("backbone.embeddings", "backbone.norm_f", "lm_head"), 0)
    planner.dispatch(model, {**around, **parts})
    assert answer(model).equal(want)
    mixer, used_bytes = model.backbone.layers[1].mixer, virtual_accelerators.used_bytes(0)

    def fail(*_: Any) -> None:
        assert not is_offloaded(mixer.conv1d.weight)
        raise torch.OutOfMemoryError

    handle = mixer.out_proj.register_forward_pre_hook(fail)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            answer(model)
    handle.remove()
    assert all(is_offloaded(parameter) for parameter in mixer.parameters())
    assert virtual_accelerators.used_bytes(0) == used_bytes
    assert answer(model).equal(want)
    planner.dispatch(model, {**around, **parts, "backbone.layers.2": 1})
    assert answer(model).equal(want)
    assert answer(planner.undispatch(model).to(0)).equal(want)


@pytest.mark.parametrize("devices", [(0, 1), (0, "cpu"), ("cpu", 1)])
def test_layers_that_share_an_activation_can_be_apart(devices: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    config = OpenAIGPTConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16)
    model = OpenAIGPTLMHeadModel(config).eval()
    want = answer(copy.deepcopy(model).to(0))
    names = ("transformer.tokens_embed", "transformer.positions_embed", "lm_head")
    assert model.transformer.h[0].mlp.act is model.transformer.h[1].mlp.act
    parts = {f"transformer.h.{number}": device for number, device in enumerate(devices)}
    planner.dispatch(model, {**dict.fromkeys(names, 0), **parts})
    assert answer(model).equal(want)


@pytest.mark.parametrize("head", [0, 1, "cpu"])
def test_modules_that_peft_trains_whole(head: Any) -> None:
    """PEFT copies the module, with a hook that it makes from the attributes of ours; both are used."""

    def saving(base: nn.Module) -> Any:
        torch.manual_seed(1)
        options: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
        return peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False, **options)).eval()

    plain = saving(built("llama").to(0))
    model = saving(planner.dispatch(built("llama"), {**mapped("llama", (0, 1, 1, 0)), "lm_head": head}))
    assert answer(model).equal(answer(plain))
    with torch.no_grad(), model.disable_adapter(), plain.disable_adapter():
        assert answer(model).equal(answer(plain))
    saved = model.base_model.model.lm_head.modules_to_save["default"]
    assert saved._hf_hook.execution_device == torch.device(0 if head == "cpu" else head)


class Adapted(nn.Module):
    """A frozen layer with a trained part beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8, bias=False)
        self.register_parameter("scale", nn.Parameter(torch.ones(8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.base(x) + self.a(x) * self.scale
        return made


@pytest.mark.parametrize("lies_on", [0, 1])
@pytest.mark.parametrize("is_recomputed", [False, True])
def test_tensors_on_another_accelerator_than_their_layer_are_trained(
    lies_on: int, is_recomputed: bool
) -> None:
    """The layers run on 0 and 1; what has a key of its own lies there, as the object that an optimizer holds."""
    torch.manual_seed(0)
    plain = nn.Sequential(Adapted(), Adapted(), Adapted()).train()
    spread = copy.deepcopy(plain)
    trained = {name: p for name, p in spread.named_parameters() if p.requires_grad}
    device_map: dict[str, Any] = {"0": 0, "1": 1, "2": "cpu"}
    planner.dispatch(spread, {**device_map, **dict.fromkeys(trained, lies_on)})
    optimizers = [
        torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1) for net in (plain, spread)
    ]
    for _ in range(3):
        for net, optimizer in zip((plain, spread), optimizers, strict=True):
            x = torch.linspace(-1, 1, 16).reshape(2, 8).requires_grad_()
            optimizer.zero_grad()
            for layer in net:
                x = checkpoint(layer, x, use_reentrant=False) if is_recomputed else layer(x)
            x.square().sum().backward()
            optimizer.step()
    want = dict(plain.named_parameters())
    for name, parameter in trained.items():
        assert spread.get_parameter(name) is parameter and parameter.device == torch.device(lies_on)
        assert torch.allclose(parameter.cpu(), want[name], atol=1e-6), name
    assert torch.allclose(planner.state_dict(spread)["1.a.weight"], want["1.a.weight"], atol=1e-6)
    planner.undispatch(spread)
    assert all(spread.get_parameter(name) is p and p.device.type == "cpu" for name, p in trained.items())


def test_where_weights_rest_is_of_accelerates_classes(tmp_path: Path) -> None:
    """compressed-tensors asks for them before it writes there."""
    datasets = accelerate.utils.offload.PrefixedDataset, accelerate.utils.offload.OffloadedWeightsLoader
    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).requires_grad_(False)
    device_map: dict[str, Any] = {"0": "cpu", "1": 0}
    ways = [
        planner.cpu_offload(copy.deepcopy(plain), 0),
        planner.cpu_offload(copy.deepcopy(plain), 0, state_dict=plain.state_dict()),
        planner.disk_offload(copy.deepcopy(plain), str(tmp_path), 0),
        planner.dispatch_model(copy.deepcopy(plain), device_map),
        planner.dispatch_model(copy.deepcopy(plain), device_map, state_dict=plain.state_dict()),
        planner.dispatch(copy.deepcopy(plain), device_map),
    ]
    for net in ways:
        weights: Any = net[0]._hf_hook.weights_map
        assert isinstance(weights, datasets[0]) and isinstance(weights.dataset, datasets[1])
        assert weights.dataset[f"{weights.prefix}weight"].equal(plain[0].weight)
        assert weights["weight"].equal(plain[0].weight)
        twin = copy.deepcopy(net)[0]._hf_hook.weights_map
        assert isinstance(twin, datasets[0]) and twin["bias"].equal(plain[0].bias)
        if net is not ways[2]:
            weights.dataset.state_dict[f"{weights.prefix}weight"] = torch.zeros(8, 8)
            assert net[0](torch.ones(1, 8)).cpu().equal(plain[0].bias[None])
    assert isinstance(planner.PrefixedDataset({}, ""), datasets[0])
    assert isinstance(planner.OffloadedWeightsLoader({}), datasets[1])
