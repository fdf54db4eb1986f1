"""Where things lie and run: ties over devices, parts of what a key names, shared modules, parameters in lists."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import planner
from planner.dispatching.install.device_map import ResolvedDeviceMap
from planner.dispatching.tensors.placeholder import is_offloaded
from rig import Accelerators
from tiny_models import TINY, built, mapped

IDS = torch.arange(3, 13)[None]
X = torch.linspace(-1, 1, 8).reshape(2, 4)


def tied_llama() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=True, pad_token_id=0)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def around(device: Any, head: Any) -> dict[str, Any]:
    names = ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb")
    return {**dict.fromkeys(names, device), "lm_head": head}


@pytest.fixture(scope="module")
def tied_answer() -> torch.Tensor:
    return tied_llama().to(0)(IDS.to(0)).logits.cpu()


@pytest.mark.parametrize("before", ["on the accelerator", "dispatched", "on the CPU"])
@pytest.mark.parametrize(("embed", "head"), [(1, 0), (0, 1)])
def test_a_tied_weight_is_left_where_its_second_place_wants_it(
    before: str, embed: int, head: int, tied_answer: torch.Tensor
) -> None:
    """The tensor itself lies there already, and goes with the first place."""
    model = tied_llama()
    if before == "on the accelerator":
        model.to(0)
    elif before == "dispatched":
        planner.dispatch(model, around(1 - embed, 1 - head))
    own = model.model.embed_tokens.weight
    planner.dispatch(model, around(embed, head))
    assert model.model.embed_tokens.weight is own
    assert own.device == torch.device(embed) and model.lm_head.weight.device == torch.device(head)
    assert model(IDS).logits.cpu().equal(tied_answer)
    planner.undispatch(model)
    assert model.lm_head.weight is own is model.model.embed_tokens.weight
    assert own.device.type == ("virtual" if before == "on the accelerator" else "cpu")


@pytest.mark.parametrize("runs_on", [1, "cpu"])
@pytest.mark.parametrize(("embed", "head"), [(0, "cpu"), ("cpu", 0)])
def test_a_tied_weight_that_rests_under_one_name_lies_on_the_cpu(
    runs_on: Any, embed: Any, head: Any, tied_answer: torch.Tensor, virtual_accelerators: Accelerators
) -> None:
    model = tied_llama()
    rests = "model.embed_tokens" if embed == "cpu" else "lm_head"
    device_map = {**around(0, head), "model.embed_tokens": embed}
    planner.dispatch(model, device_map, execution_map={rests: runs_on})
    part = model.get_submodule(rests)
    lies = part.weight if runs_on == "cpu" else part._hf_hook.weights_map["weight"]
    assert is_offloaded(part.weight) is (runs_on == 1)
    assert lies.device.type == "cpu"
    used_bytes = [virtual_accelerators.used_bytes(index) for index in (0, 1)]
    # The CPU's kernels sum in another order.
    tolerance = {"rtol": 0, "atol": 1e-5 if runs_on == "cpu" else 0}
    torch.testing.assert_close(model(IDS).logits.cpu(), tied_answer, **tolerance)
    assert [virtual_accelerators.used_bytes(index) for index in (0, 1)] == used_bytes
    planner.undispatch(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inside = nn.Linear(64, 64)
        self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        for layer in self.layers:
            x = layer(x)
        return x


def run_on(model: Any) -> list[str]:
    return [str(layer._hf_hook.device) for layer in model.layers]


def test_an_execution_map_may_name_parts_of_what_the_device_map_names() -> None:
    """Plans fold the one, and not the other."""
    x, plain = torch.ones(1, 64), Stack().to(0)
    model = Stack()
    size = sum(parameter.nbytes for parameter in model.layers[0].parameters())
    plan = planner.plan(model, max_memory={0: 2 * size + 100, "cpu": 10 * size}, headroom=None)
    assert "layers" in plan.device_map and "layers.0" in plan.execution_map
    planner.dispatch(model, plan)
    assert run_on(model) == ["virtual:0"] * 3
    assert model(x).equal(plain(x.to(0)).cpu())

    model = Stack()
    planner.dispatch(model, {"": "cpu"}, execution_map={"": "cpu", "layers.1": 1, "layers.2": 0})
    assert run_on(model)[1:] == ["virtual:1", "virtual:0"]
    assert [is_offloaded(layer.weight) for layer in model.layers] == [False, True, True]
    torch.testing.assert_close(model(x), plain(x.to(0)).cpu(), rtol=0, atol=1e-5)


def test_what_a_plan_runs_as_a_whole_runs_there_wherever_its_parts_lie() -> None:
    """Nothing fits on the accelerator at rest, so all is streamed there from two tiers."""
    model = nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(3)))
    plan = planner.plan(model, max_memory={0: 500, "cpu": 800, "disk": 5000})
    assert dict(plan.device_map) == {"0": "cpu", "1": "cpu", "2": "disk"}
    assert dict(plan.execution_map) == {"": 0}
    placements = ResolvedDeviceMap.of_plan(plan).placements
    assert {name: str(placement.execution_device) for name, placement in placements.items()} == dict.fromkeys(
        "012", "virtual:0"
    )


def test_an_execution_map_that_names_what_is_not_there_is_refused() -> None:
    with pytest.raises(planner.PlanMismatchError, match=r"execution map names 'layers\.7'"):
        planner.dispatch(Stack(), {"": "cpu"}, execution_map={"layers.7": 0})


@pytest.mark.parametrize("device_map", [{"0": 0, "1": 1}, {"0": "cpu", "1": 1}, {"0": 1, "1": "cpu"}])
def test_a_module_without_tensors_may_be_shared(device_map: dict[str, Any]) -> None:
    """It runs where it is called."""
    torch.manual_seed(0)
    activation = nn.Sequential(nn.Tanh())
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), activation) for _ in range(2)])
    model.requires_grad_(False)
    want = copy.deepcopy(model).to(0)(X.to(0)).cpu()
    planner.dispatch(model, device_map)
    assert model(X).equal(want)
    assert model[0][1] is model[1][1] is activation


def test_a_module_with_tensors_may_not_be_shared_over_devices() -> None:
    shared = nn.Sequential(nn.Linear(4, 4))
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), shared) for _ in range(2)])
    with pytest.raises(planner.PlanMismatchError, match=r"'0\.1' and '1\.1' are one module"):
        planner.dispatch(model, {"0": 0, "1": 1})


class Embeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(16, 4), nn.LayerNorm(4)

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        return self.norm(embedded)


class Embedding(nn.Module):
    """Calls the embedding inside of a module that must not be split."""

    _no_split_modules = ("Embeddings",)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.embeddings = nn.Linear(4, 4), Embeddings()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embeddings(self.inside(self.embeddings.words(ids)))


@pytest.mark.parametrize("embeddings", [1, "cpu"])
@pytest.mark.parametrize("lies_on", ["cpu", "virtual:0"])
def test_an_embedding_inside_of_a_whole_block_can_be_called(embeddings: Any, lies_on: str) -> None:
    ids = torch.arange(4)[None].to(lies_on)
    want = Embedding().to(0)(ids.to(0))
    found = planner.dispatch(Embedding(), {"inside": 0, "embeddings": embeddings})(ids)
    assert found.device == ids.device and found.cpu().equal(want.cpu())


class Mixing(nn.Module):
    """Its weights lie in modules that are never called."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.ParameterList([torch.full((4,), 2.0), torch.full((4,), 3.0)])
        self.named = nn.ParameterDict({"shift": torch.arange(4.0)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factors[0] * self.factors[1] + self.named["shift"]


class MixedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixing, self.head = Mixing(), nn.Linear(4, 4)
        self.scales = nn.ParameterList([torch.ones(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mixing(x)) * self.scales[0].to(x.device)


@pytest.mark.parametrize(
    "device_map",
    [
        {"mixing": "cpu", "head": 0, "scales": 0},
        {"mixing": 1, "head": 0, "scales": "cpu"},
        {"mixing.factors": "cpu", "mixing": 0, "head": 0, "scales": 0},
        {"mixing.named": "cpu", "mixing": 0, "": 0},
        {"": "cpu"},
    ],
)
@torch.no_grad()
def test_parameters_in_lists_are_brought_in_with_their_owner(device_map: dict[str, Any]) -> None:
    model = MixedForward()
    want = copy.deepcopy(model).to(0)(X.to(0)).cpu()
    planner.dispatch(model, device_map, execution_map=None if 0 in device_map.values() else {"": 0})
    for _ in range(2):
        assert model(X).equal(want)
        assert any(is_offloaded(parameter) for parameter in model.parameters())
    planner.undispatch(model)
    assert copy.deepcopy(model).to(0)(X.to(0)).cpu().equal(want)


@pytest.mark.parametrize("parts", [1, "cpu"])
@torch.no_grad()
def test_owners_of_lists_have_borders(parts: Any) -> None:
    """Nobody calls the dict that holds them."""
    model = nn.Module()
    model.parts, model.head = nn.ModuleDict({"a": Mixing()}), nn.Linear(4, 4)
    want = Mixing().to(0)(X.to(0)).cpu()
    planner.dispatch(model, {"parts": parts, "head": 0})
    assert model.parts["a"](X).cpu().equal(want)


class Casting(nn.Module):
    """Casts its own part in every forward, as routers of mixtures of experts do."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.classifier = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.classifier = self.classifier.to(self.dtype)
        return self.classifier(x)


@pytest.mark.parametrize("key", ["1", "1.classifier"])
def test_casts_in_a_forward_that_change_nothing_are_let_through(key: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), Casting(torch.float32)), torch.ones(1, 4, device=0)
    want = copy.deepcopy(model).to(0)(x)
    planner.dispatch(model, {"0": 0, key: "cpu"})
    assert all(model(x).equal(want) for _ in range(2))
    assert is_offloaded(model[1].classifier.weight)
    for convert in (nn.Module.half, lambda m: m.to(0), lambda m: m.to(torch.float16), nn.Module.cpu):
        with pytest.raises(planner.OffloadError, match="You can't move"):
            convert(model[1].classifier)


@pytest.mark.parametrize("place", [planner.dispatch, planner.dispatch_model])
def test_generate_makes_tensors_beside_an_offloaded_embedding(place: Callable[..., Any]) -> None:
    """It asks the embedding for its device."""
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 2, "max_new_tokens": 4, "do_sample": False}
    want = built("llama").to(0).generate(IDS.to(0), **options)
    model = place(built("llama"), {**mapped("llama", (0, 1, 1, 0)), "model.embed_tokens": "cpu"})
    assert model.generate(IDS.to(0), **options).equal(want)


@torch.no_grad()
def test_an_encoder_decoder_after_generating_is_dispatched_as_before() -> None:
    """generate() tells the encoder's hook to send results back."""
    given, plain = TINY["t5"].inputs(0), built("t5").to(0)
    want, words = plain(**given).logits, plain.generate(given["input_ids"], max_new_tokens=4, do_sample=False)
    model = built("t5")
    own = list(model.parameters())
    planner.dispatch(model, mapped("t5", (0, "cpu", 1, "cpu")))
    for device_map in (mapped("t5", (1, 1, "cpu", 0)), mapped("t5", (0, "cpu", 1, "cpu"), outer=1)):
        before = model.encoder.__dict__.get("_hf_hook")
        assert model.generate(given["input_ids"], max_new_tokens=4, do_sample=False).equal(words)
        assert model.encoder._hf_hook is before and before.io_same_device
        assert model(**given).logits.equal(want)
        planner.dispatch(model, device_map)
        assert model(**given).logits.equal(want)
    assert model.generate(given["input_ids"], max_new_tokens=4, do_sample=False).equal(words)
    planner.undispatch(model)
    assert not any(
        vars(module).keys() & {"_hf_hook", "_old_forward", "forward"} for module in model.modules()
    )
    assert not any(is_offloaded(parameter) for parameter in model.parameters())
    assert all(now is first for now, first in zip(model.parameters(), own, strict=True))
    assert model.to(0)(**given).logits.equal(want)


@torch.no_grad()
def test_a_key_is_a_name_and_not_the_beginning_of_one() -> None:
    """transformers' disk offload takes "1" for "10" and "11", too."""
    plain = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)))
    x = torch.ones(2, 4)
    want = copy.deepcopy(plain).to(0)(x.to(0)).cpu()
    model = planner.dispatch(plain, {"": 0, "1": "cpu"})
    assert [number for number, layer in enumerate(model) if is_offloaded(layer.weight)] == [1]
    assert model(x).equal(want)


class Sliced(nn.Module):
    """A weight, and a part of it that begins where it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Parameter(torch.arange(8.0).reshape(4, 2))
        self.part = nn.Parameter(self.whole.data[:2])


def test_a_view_at_an_address_does_not_get_the_copy_of_its_base() -> None:
    """accelerate's map of tied copies goes by address."""
    model = Sliced()
    tied: dict[int, dict[Any, Any]] = {model.whole.data_ptr(): {}}
    hook = planner.AlignDevicesHook(execution_device="virtual:1", tied_params_map=tied)
    planner.add_hook_to_module(model, hook)
    assert model.whole.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert model.part.tolist() == [[0, 1], [2, 3]]
    assert {model.whole.device.index, model.part.device.index} == {1}
    assert list(tied.values()) == [{torch.device("virtual:1"): model.whole}]
