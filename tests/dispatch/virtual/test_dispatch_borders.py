"""What crosses a border, how often, and what stays: traffic, memory, containers."""

from __future__ import annotations

import collections
import copy
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BatchEncoding, DynamicCache
from transformers.modeling_outputs import BaseModelOutput

import planner
from planner.dispatching.tensors.placeholder import is_offloaded
from rig import Accelerators
from tiny_models import TINY, built, mapped

IDS = torch.arange(3, 13)[None]
Pair = namedtuple("Pair", "left right")


@dataclass
class Record:
    tensor: torch.Tensor
    number: int = 3


@dataclass(frozen=True)
class Frozen:
    tensor: torch.Tensor


class Taking(nn.Module):
    """Runs on the second device and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.got: Any = None

    def forward(self, value: Any, *, skipped: Any = None, keyword: Any = None) -> torch.Tensor:
        self.got = (value, skipped, keyword)
        return self.weight + 1


class Passing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.taking = Taking()

    def forward(self, value: Any, **kwargs: Any) -> Any:
        return self.first(self.taking(value, **kwargs).to(0))


def passing(**options: Any) -> Passing:
    model = Passing()
    planner.dispatch(model, {"first": 0, "taking": 1}, **options)
    return model


def tensor() -> torch.Tensor:
    return torch.ones(2, device=0)


CONTAINERS: dict[str, tuple[Any, Any]] = {
    "tensor": (lambda x: x, lambda v: v),
    "tuple": (lambda x: (1, (x, None)), lambda v: v[1][0]),
    "list": (lambda x: [x, "a"], lambda v: v[0]),
    "dict": (lambda x: {"a": {"b": x}}, lambda v: v["a"]["b"]),
    "ordered dict": (lambda x: OrderedDict(a=x), lambda v: v["a"]),
    "default dict": (lambda x: defaultdict(list, a=x), lambda v: v["a"]),
    "proxy": (lambda x: MappingProxyType({"a": x}), lambda v: v["a"]),
    "named tuple": (lambda x: Pair(x, 2), lambda v: v.left),
    "maximum": (lambda x: torch.max(x, 0), lambda v: v.values),
    "dataclass": (lambda x: Record(x), lambda v: v.tensor),
    "frozen dataclass": (lambda x: Frozen(x), lambda v: v.tensor),
    "model output": (lambda x: BaseModelOutput(last_hidden_state=x), lambda v: v.last_hidden_state),
    "encoding": (lambda x: BatchEncoding({"a": x}), lambda v: v["a"]),
    "user dict": (lambda x: collections.UserDict(a=x), lambda v: v["a"]),
    "packed": (
        lambda x: nn.utils.rnn.pack_sequence([x.cpu(), x.cpu()]).to(0),
        lambda v: v.data,
    ),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_tensors_cross_inside_containers_and_the_callers_stay(kind: str) -> None:
    make, look = CONTAINERS[kind]
    model = passing()
    for place in ("positional", "keyword"):
        x = tensor()
        value = make(x)
        if place == "positional":
            model(value)
            got = model.taking.got[0]
        else:
            model(1, keyword=value)
            got = model.taking.got[2]
        assert look(got).device == torch.device(1)
        assert look(value).device == torch.device(0)
        assert type(got) is type(value)
        if isinstance(value, defaultdict):
            assert got.default_factory is list


@torch.no_grad()
def test_what_torch_returns_crosses_in_compiled_code_as_well() -> None:
    class Best(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x).topk(2)

    class Summing(nn.Linear):
        def forward(self, best: Any) -> torch.Tensor:
            return super().forward(best.values * best.indices)

    plain = nn.Sequential(Best(4, 4), Summing(2, 2))
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    want = plain(x)
    planner.dispatch(plain, {"0": 0, "1": 1})
    torch._dynamo.reset()
    compiled = torch.compile(plain, backend="aot_eager", fullgraph=True)
    assert plain(x).equal(want) and compiled(x).equal(want)


def test_what_lies_right_is_handed_on_as_it_is() -> None:
    model = Taking()
    planner.dispatch(model, {"": 0})
    assert not hasattr(model, "_hf_hook")
    model = passing()
    there = [torch.ones(2, device=1)]
    model.taking(there)
    assert model.taking.got[0] is there


def test_skip_keys_hold_for_keywords_and_inside_mappings() -> None:
    model = passing(skip_keys="skipped")
    x, nested = tensor(), {"skipped": tensor(), "other": tensor()}
    model(1, skipped=x, keyword=nested)
    _, skipped, keyword = model.taking.got
    assert skipped is x
    assert keyword["skipped"] is nested["skipped"] and keyword["other"].device == torch.device(1)


def test_caches_never_cross() -> None:
    model, cache = passing(), DynamicCache()
    cache.update(torch.ones(1, 1, 1, 2, device=0), torch.ones(1, 1, 1, 2, device=0), 0)
    model(cache, keyword=[cache])
    value, _, keyword = model.taking.got
    assert value is cache and keyword[0] is cache
    assert cache.layers[0].keys.device == torch.device(0)


def test_the_models_own_skip_keys_are_honoured() -> None:
    model = planner.dispatch(built("llama"), mapped("llama", (0, 1, 1, 0)))
    assert model._hf_hook.skip == frozenset(model._skip_keys_device_placement)


@torch.no_grad()
def test_a_tensor_for_many_blocks_crosses_once(virtual_accelerators: Accelerators) -> None:
    """Mask and rotary tables go to every layer; there are as many crossings with six layers on the other side as with two."""
    traffic = []
    for layers in ((0, 1, 1, 0), (0, 1, 0, 1)):
        model = planner.dispatch(built("llama"), mapped("llama", layers))
        mask = torch.ones(1, 10, dtype=torch.long, device=0)
        model(IDS.to(0), attention_mask=mask, use_cache=False)
        virtual_accelerators.reset()
        model(IDS.to(0), attention_mask=mask, use_cache=False)
        traffic.append(virtual_accelerators.traffic().between_devices_bytes)
    hidden_bytes = 10 * 32 * 4
    # The second way crosses twice more with hidden states, and with nothing else.
    assert traffic[1] - traffic[0] <= 2 * hidden_bytes
    assert traffic[0] < 2 * hidden_bytes + 10 * 8 * 4 * 2 + 10 * 10 * 4 + 1024


class Sharing(nn.Module):
    """Hands one tensor to three blocks, and changes it in place before the last."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        results = [self.blocks[0](x), self.blocks[1](x)]
        x.add_(1)
        return [*results, self.blocks[2](x)]


@torch.no_grad()
def test_a_tensor_that_was_written_to_crosses_again(virtual_accelerators: Accelerators) -> None:
    torch.manual_seed(0)
    model = Sharing()
    want = copy.deepcopy(model).to(0)(tensor())
    planner.dispatch(model, {"blocks.0": 1, "blocks.1": 1, "blocks.2": 1, "": 0})
    virtual_accelerators.reset()
    found = model(tensor())
    assert all(one.equal(other) for one, other in zip(found, want, strict=True))
    results_bytes = 3 * 8
    assert virtual_accelerators.traffic().between_devices_bytes == 2 * 8 + results_bytes


def test_crossings_do_not_outlive_the_forward(virtual_accelerators: Accelerators) -> None:
    model = planner.dispatch(built("llama"), mapped("llama", (0, 1, 1, 0)))
    with torch.no_grad():
        model(IDS.to(0))
        used_bytes = [virtual_accelerators.used_bytes(index) for index in (0, 1)]
        model(IDS.to(0))
    assert [virtual_accelerators.used_bytes(index) for index in (0, 1)] == used_bytes


@torch.no_grad()
def test_inference_mode_and_plain_forwards_mix() -> None:
    model, want = planner.dispatch(built("llama"), mapped("llama", (0, "cpu", 1, "cpu"))), None
    want = built("llama").to(0)(IDS.to(0)).logits
    for _ in range(2):
        with torch.inference_mode():
            assert model(IDS.to(0)).logits.equal(want)
        assert model(IDS.to(0)).logits.equal(want)


def test_each_offloaded_layer_is_fetched_once_and_none_is_kept(virtual_accelerators: Accelerators) -> None:
    model = built("llama")
    layer_bytes = sum(p.nbytes for p in model.model.layers[1].parameters())
    planner.dispatch(model, mapped("llama", (0, "cpu", 1, "cpu")))
    used_bytes = [virtual_accelerators.used_bytes(index) for index in (0, 1)]
    virtual_accelerators.reset()
    with torch.no_grad():
        model(IDS.to(0), use_cache=False)
    assert [virtual_accelerators.used_bytes(index) for index in (0, 1)] == used_bytes
    assert 2 * layer_bytes <= virtual_accelerators.traffic().to_device_bytes < 2 * layer_bytes + 4096


class Tied(nn.Module):
    """One weight under three names, two of them in one block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 20)
        self.block = nn.Sequential(nn.Linear(20, 50, bias=False), nn.Linear(50, 20))
        self.head = nn.Linear(20, 50, bias=False)
        self.block[0].weight = self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embed(ids)))


@pytest.mark.parametrize(
    ("device_map", "copies"),
    [
        ({"embed": 0, "block": 0, "head": 0}, {0: 1, 1: 0}),
        ({"embed": 0, "block": 1, "head": 0}, {0: 1, 1: 1}),
        ({"embed": 0, "block": 1, "head": "cpu"}, {0: 1, 1: 1}),
        ({"embed": "cpu", "block": 1, "head": "cpu"}, {0: 0, 1: 1}),
        ({"embed": "cpu", "block": "cpu", "head": "cpu", "": 0}, {0: 0, 1: 0}),
    ],
)
@torch.no_grad()
def test_tied_weights_have_one_copy_on_each_device(
    device_map: dict[str, Any], copies: dict[int, int], virtual_accelerators: Accelerators
) -> None:
    torch.manual_seed(0)
    model, ids = Tied(), torch.tensor([[1, 2, 3]])
    weight_bytes, other_bytes = model.embed.weight.nbytes, sum(p.nbytes for p in model.block[1].parameters())
    want = copy.deepcopy(model).to(0)(ids.to(0)).cpu()
    before = {index: virtual_accelerators.used_bytes(index) for index in (0, 1)}
    planner.dispatch(model, device_map)
    for index in (0, 1):
        used_bytes = virtual_accelerators.used_bytes(index) - before[index]
        assert 0 <= used_bytes - copies[index] * weight_bytes <= other_bytes
    assert model(ids.to(0)).cpu().equal(want)
    assert len(planner.find_tied_parameters(model)) <= 1
    planner.undispatch(model)
    assert model.head.weight is model.embed.weight is model.block[0].weight
    assert model(ids).equal(want)


@torch.no_grad()
def test_modules_with_weights_of_their_own_are_fetched_with_what_is_inside() -> None:
    """Multi-head attention reads the weight of a child without calling it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    model.eval().requires_grad_(False)
    x = torch.ones(1, 3, 8)
    want = copy.deepcopy(model).to(0)(x.to(0)).cpu()
    planner.dispatch(model, {"0": 1, "1.self_attn": "cpu", "1": 0})
    torch.testing.assert_close(model(x), want)
    assert is_offloaded(model[1].self_attn.out_proj.weight)


class Counting(nn.Module):
    """Writes to a buffer in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.weight * self.calls


@pytest.mark.parametrize("offload_buffers", [False, True])
def test_what_a_forward_writes_to_its_buffers_is_kept(offload_buffers: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), Counting())
    planner.dispatch(model, {"0": 0, "1": "cpu"}, offload_buffers=offload_buffers)
    assert is_offloaded(model[1].calls) == offload_buffers
    for _ in range(3):
        model(torch.ones(2))
    assert planner.state_dict(model)["1.calls"].item() == 3
    planner.undispatch(model)
    assert model[1].calls.item() == 3 and model[1].calls.device == torch.device("cpu")


@pytest.mark.parametrize("said", [None, False, True])
@pytest.mark.parametrize("argument", [None, False, True])
def test_a_plan_says_whether_buffers_are_offloaded_unless_the_argument_does(said: Any, argument: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), Counting())
    settings = {} if said is None else {"offload_buffers": said}
    plan = planner.plan(model, max_memory={0: 10**3, "cpu": 10**3}, pin={"1": "cpu"}, **settings)
    planner.dispatch(model, planner.Plan.from_json(plan.to_json()), offload_buffers=argument)
    assert is_offloaded(model[1].weight)
    assert is_offloaded(model[1].calls) == bool(said if argument is None else argument)


@pytest.mark.parametrize("strategy", ["sequential", "balanced", "balanced_low_0"])
def test_what_accelerates_strategies_offload_runs_on_the_first_accelerator(strategy: str) -> None:
    model = nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(6)))
    plan = planner.plan(model, max_memory={0: 900, 1: 500, "cpu": 4000}, strategy=strategy)
    offloaded = [name for name, device in plan.device_map.items() if device == "cpu"]
    assert offloaded and dict(plan.execution_map) == dict.fromkeys(offloaded, 0)
    assert plan.certificate.stage == strategy
    planner.dispatch(model, planner.Plan.from_json(plan.to_json()))
    for name in offloaded:
        layer = model.get_submodule(name)
        assert is_offloaded(layer.weight) and layer.weight.device.index == 0


class Showing(nn.Module):
    """Gives a view of its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4.0), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight[1:3]


def test_a_view_of_a_weight_that_a_block_returns_keeps_its_values() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Showing())
    planner.dispatch(model, {"0": 0, "1": "cpu"}, staging_bytes={0: 1 << 20})
    views = [model(torch.ones(2)) for _ in range(3)]
    assert all(view.tolist() == [1.0, 2.0] for view in views)


class Iterated(nn.Module):
    """Calls what is inside its numbered parts, never the parts."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2)])
        self.pairs = nn.ModuleList([Part() for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            for layer in part:
                x = layer(x)
        for pair in self.pairs:
            x = pair.second(pair.first(x))
        return x


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("devices", [(0, 1, 1, 0), (0, "cpu", "cpu", 1)])
@torch.no_grad()
def test_blocks_whose_forward_is_never_called(devices: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    model, x = Iterated(), torch.ones(1, 2)
    want = copy.deepcopy(model).to(0)(x.to(0)).cpu()
    names = ("parts.0", "parts.1", "pairs.0", "pairs.1")
    planner.dispatch(model, dict(zip(names, devices, strict=True)))
    assert model(x).equal(want)


class Embedded(nn.Module):
    """A block that must stay whole, whose embedding is also used by itself, as `get_input_embeddings` is."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(4, 2), nn.Linear(2, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.mix(self.words(ids))


class Reader(nn.Module):
    _no_split_modules = ("Embedded",)

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = Embedded(), nn.Linear(2, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.block(ids))


@torch.no_grad()
def test_an_embedding_inside_a_block_has_a_border_of_its_own() -> None:
    model, ids = Reader(), torch.tensor([1, 3])
    want = model.block.words(ids)
    planner.dispatch(model, {"block": 1, "last": 0})
    assert model.block.words(ids).cpu().equal(want)
    assert "forward" not in vars(model.block.mix)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
@torch.no_grad()
def test_everything_through_accelerates_signature(name: str) -> None:
    """`cpu_offload` and `dispatch_model`, also with classes to preload and hooks by force."""
    plain = built(name).to(0)
    want = plain(**TINY[name].inputs(0)).logits
    for model in (
        planner.cpu_offload(built(name), 0),
        planner.cpu_offload(built(name), 0, offload_buffers=True),
        planner.cpu_offload(built(name), 0, preload_module_classes=list(plain._no_split_modules)),
        planner.dispatch_model(built(name), {"": 0}, force_hooks=True),
        planner.dispatch_model(built(name), mapped(name, (0, "cpu", 1, "cpu")), main_device=1),
    ):
        assert model(**TINY[name].inputs(0)).logits.equal(want)
