"""What is one block where a model names none: containers never are, what repeats inside them is, whatever it is called."""

from __future__ import annotations

import time
from collections import OrderedDict
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planner
from look_alikes import LOOK_ALIKES
from planner.model.layout import repeated
from planner.model.tree import ModuleTree
from planner.names import nearest_key


class Res(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class Stack(nn.Module):
    """A list of layers with a forward of its own."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Res() for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Mixture(nn.Module):
    """Experts whose results meet, inside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Res() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return sum((expert(x) for expert in self.experts), x)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Res(), Mixture()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x + self.attn(x))


class Chain(nn.Sequential):
    """A Sequential by another name."""


class Space(nn.Module):
    """A namespace: modules and no forward."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def size_bytes(model: nn.Module) -> int:
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def two_cards(model: nn.Module, percent: int) -> planner.Plan:
    budget = size_bytes(model) * percent // 100
    return planner.plan(model, max_memory={0: budget, 1: budget})


def cut_inside(model: nn.Module, plan: planner.Plan, *classes: str) -> list[str]:
    findings = planner.check(model, plan.device_map, no_split_module_classes=classes)
    return [finding.name for finding in findings if finding.rule == "split-block"]


def blocks_of(model: nn.Module) -> list[str]:
    return repeated(ModuleTree.from_module(model))[0]


@pytest.mark.parametrize("name", LOOK_ALIKES)
@pytest.mark.parametrize("percent", [60, 90])
def test_models_in_stages_fit_two_cards_and_no_residual_is_cut(name: str, percent: int) -> None:
    build, whole = LOOK_ALIKES[name]
    with torch.device("meta"):
        model = build()
    plan = two_cards(model, percent)
    assert sum(plan.offloaded_bytes.values()) == 0
    assert cut_inside(model, plan, *whole) == []


def test_stages_in_containers() -> None:
    features = nn.Sequential(*(nn.Sequential(Res(), Res()) for _ in range(3)))
    model = nn.Sequential(OrderedDict(features=features, head=nn.Linear(8, 4)))
    plan = two_cards(model, 60)
    assert plan.source.blocks == 7
    assert cut_inside(model, plan, "Res") == []


def test_a_model_that_names_only_classes_it_does_not_have_is_guessed_no_others() -> None:
    parts = OrderedDict(stem=nn.Linear(8, 8), body=nn.Sequential(*(Res() for _ in range(3))))
    named, unnamed = Chain(parts), Chain(parts)
    named._no_split_modules = ["Absent"]
    assert planner.plan(unnamed, max_memory={0: 4000}).source.blocks == 4
    assert planner.plan(named, max_memory={0: 4000}).source.blocks == 2


@pytest.mark.parametrize(
    "names",
    [
        [f"encoder_layer_{n}" for n in range(4)],
        ["first", "second", "third", "last"],
        ["Mixed_5b", "Mixed_5c", "a", "b"],
        ["0", "1", "x", "y"],
        ["10", "11", "12", "13"],
    ],
)
def test_siblings_are_blocks_whatever_they_are_called(names: list[str]) -> None:
    body = nn.Sequential(OrderedDict((name, Res()) for name in names))
    model = nn.Sequential(OrderedDict(stem=nn.Linear(8, 8), body=body, head=nn.Linear(8, 4)))
    size = size_bytes(model)
    for percent in range(20, 110, 5):
        budgets = {0: size * percent // 100, 1: size * percent // 100, "cpu": 10 * size}
        assert cut_inside(model, planner.plan(model, max_memory=budgets), "Res") == []


@pytest.mark.parametrize(
    "container",
    [
        lambda one, two: nn.Sequential(one, two),
        lambda one, two: nn.ModuleList([one, two]),
        lambda one, two: nn.ModuleDict({"a": one, "b": two}),
        lambda one, two: Chain(one, two),
        lambda one, two: Space(a=one, b=two),
        lambda one, two: Space(block_1=one, block_2=nn.Sequential(two)),
        lambda one, two: Chain(Space(x=nn.ModuleDict({"a": one, "b": two}))),
    ],
    ids=["Sequential", "ModuleList", "ModuleDict", "subclass", "namespace", "both", "nested"],
)
def test_no_container_is_a_block(container: Any) -> None:
    """Four of a kind, in a list, so that the container itself repeats."""
    model = nn.Sequential(OrderedDict(body=nn.ModuleList(container(Res(), Res()) for _ in range(4))))
    found = blocks_of(model)
    assert "Res" in found
    assert not {"Sequential", "ModuleList", "ModuleDict", "Chain", "Space"} & set(found)
    plan = two_cards(model, 60)
    assert plan.source.blocks == 8
    assert cut_inside(model, plan, "Res") == []


def test_a_container_of_unlike_modules_is_no_block_either() -> None:
    body = nn.Sequential(nn.Linear(40, 40), Stack(1), nn.Conv2d(40, 40, 1))
    model = nn.Sequential(OrderedDict(body=body, head=nn.Linear(8, 4)))
    assert two_cards(model, 60).source.blocks == 4


def test_a_container_with_a_forward_of_its_own_is_a_block() -> None:
    class Summed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return sum((part(x) for part in self), x)

    model = nn.Sequential(*(Summed(Res(), Res()) for _ in range(4)))
    plan = two_cards(model, 60)
    assert plan.source.blocks == 4
    assert cut_inside(model, plan, "Summed") == []


def test_what_meets_inside_a_layer_stays_inside_it() -> None:
    model = nn.Sequential(*(Mixed() for _ in range(5)))
    plan = two_cards(model, 60)
    assert cut_inside(model, plan, "Mixed") == []
    assert plan.source.blocks == 5


def test_two_halves_of_a_model_are_no_blocks_where_numbered_layers_are_inside() -> None:
    model = nn.Sequential(OrderedDict(encoder=Stack(6), decoder=Stack(6), head=nn.Linear(8, 4)))
    quarter = size_bytes(model) * 3 // 10
    plan = planner.plan(model, max_memory=dict.fromkeys(range(4), quarter))
    assert cut_inside(model, plan, "Res") == []
    assert "Stack" not in blocks_of(model)


def test_thirds_of_a_model_give_way_to_what_is_inside_so_that_two_cards_can_hold_it() -> None:
    model = nn.ModuleDict({"towers": nn.ModuleList(Stack(6) for _ in range(3))})
    plan = two_cards(model, 60)
    assert cut_inside(model, plan, "Res") == []
    assert blocks_of(nn.ModuleDict({"towers": nn.ModuleList(Stack(2) for _ in range(10))})) == [
        "Linear",
        "Res",
        "Stack",
    ]


class Tree(nn.Module):
    """Two trees of its own class, whose results meet."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.root = nn.Linear(16, 16)
        if depth:
            self.left, self.right = Tree(depth - 1), Tree(depth - 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.root(x)
        return x if not hasattr(self, "left") else x + self.left(x) + self.right(x)


@pytest.mark.parametrize("wrap", [lambda tree: tree, lambda tree: nn.ModuleList([Tree(1), tree])])
@pytest.mark.parametrize("percent", [60, 90])
def test_a_module_around_others_of_its_class_gives_way_alone(wrap: Any, percent: int) -> None:
    """What is inside stays a block where nothing is in the way."""
    ends = {"base": nn.Linear(16, 16), "head": nn.Linear(16, 16)}
    model = nn.Sequential(OrderedDict(base=ends["base"], body=wrap(Tree(4)), head=ends["head"]))
    assert "Tree" in blocks_of(model)
    plan = two_cards(model, percent)
    assert sum(plan.offloaded_bytes.values()) == 0
    quarters = [f"{side}.{inner}" for side in ("left", "right") for inner in ("left", "right")]
    top = "body" if isinstance(model.body, Tree) else "body.1"
    for name in quarters:
        homes = {home for key, home in plan.device_map.items() if f"{key}.".startswith(f"{top}.{name}.")}
        assert len(homes) <= 1, (name, plan.device_map)


@pytest.mark.parametrize("strategy", ["sequential", "balanced"])
@pytest.mark.parametrize("percent", [60, 90])
def test_what_gives_way_does_so_for_every_strategy(strategy: str, percent: int) -> None:
    model = nn.Sequential(OrderedDict(base=nn.Linear(16, 16), body=Tree(4), head=nn.Linear(16, 16)))
    budget = size_bytes(model) * percent // 100
    plan = planner.plan(
        model,
        max_memory={0: budget, 1: budget, "cpu": 10**9},
        strategy={"type": strategy, "reserve": "if_offloaded"},
    )
    assert sum(plan.offloaded_bytes.values()) == 0
    assert {home for key, home in plan.device_map.items() if key.startswith("body.")} == {0, 1}
    quarters = [f"body.{side}.{inner}" for side in ("left", "right") for inner in ("left", "right")]
    assert all(nearest_key(name, plan.device_map) for name in quarters)


def test_a_long_chain_of_one_class_is_walked_once() -> None:
    class Link(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = last = nn.Sequential()
    with torch.device("meta"):
        for _ in range(3_000):
            link, twin = Link(), Link()
            link.w, twin.w = nn.Linear(4, 4), nn.Linear(4, 4)
            last.add_module("0", link)
            last.add_module("1", twin)
            last = link
    started = time.process_time()
    assert blocks_of(model)
    assert time.process_time() - started < 2


def test_a_sketch_of_a_model_without_any_forward_is_read_by_numbers() -> None:
    """Nothing has a forward, so having none says nothing."""
    layers = nn.ModuleList(nn.Module() for _ in range(4))
    for layer in layers:
        for name in ("a", "b"):
            part = nn.Module()
            part.w = nn.Parameter(torch.empty(10, device="meta"))
            layer.add_module(name, part)
    plan = two_cards(nn.ModuleDict({"layers": layers}), 60)
    assert plan.source.blocks == 4


def drawn(rng: Random, depth: int) -> nn.Module:
    """Containers of containers of blocks, under all kinds of names."""
    if depth == 0:
        return Res()
    children = [drawn(rng, depth - 1) for _ in range(rng.randint(2, 3))]
    stem = rng.choice(("", "layer", "block_", "stage-"))
    letters = rng.sample("abcdefgh", len(children))
    names = [stem + (str(n) if stem or rng.random() < 0.5 else letters[n]) for n in range(len(children))]
    kind = rng.choice(("sequential", "list", "dict", "chain", "space"))
    if kind == "list":
        return nn.ModuleList(children)
    if kind == "dict":
        return nn.ModuleDict(dict(zip(names, children, strict=True)))
    if kind == "space":
        return Space(**dict(zip(names, children, strict=True)))
    cls = nn.Sequential if kind == "sequential" else Chain
    return cls(OrderedDict(zip(names, children, strict=True)))


def test_over_drawn_containers_the_blocks_are_what_has_a_forward_and_two_cards_hold_them() -> None:
    for seed in range(150):
        rng = Random(seed)
        body = drawn(rng, rng.randint(2, 3))
        model = nn.Sequential(OrderedDict(stem=nn.Linear(8, 8), body=body, head=nn.Linear(8, 4)))
        count = sum(isinstance(module, Res) for module in model.modules())
        plan = two_cards(model, 70 if count < 6 else 60)
        assert plan.source.blocks == count + 2, seed
        assert sum(plan.offloaded_bytes.values()) == 0, seed
        assert cut_inside(model, plan, "Res") == [], seed


class Flat(nn.Module):
    """Leaves without numbers: nothing repeats."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.query(x) + self.key(x) * self.value(x)) + x


class Around(nn.Module):
    def __init__(self, body: nn.Module, **more: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, module in more.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


class Link(nn.Module):
    """A list by links: each holds the next."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.own = nn.Linear(8, 8)
        self.next = Link(length - 1) if length else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.own(x)
        return x if self.next is None else self.next(x)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Around(Flat()),
        lambda: Around(Around(Flat())),
        lambda: Around(Flat(), head=nn.Linear(8, 8)),
        lambda: Link(7),
    ],
    ids=["around", "twice around", "backbone and head", "links"],
)
def test_where_nothing_repeats_two_cards_are_enough_all_the_same(build: Any) -> None:
    model = build()
    for percent in (60, 90):
        plan = two_cards(model, percent)
        assert sum(plan.offloaded_bytes.values()) == 0
        assert planner.verify(model, plan, (torch.ones(2, 8),)).runs


def test_a_module_that_may_use_its_own_tensors_with_those_inside_stays_whole() -> None:
    model = Around(nn.MultiheadAttention(8, 2))
    plan = planner.plan(model, max_memory={0: size_bytes(model) // 2, "cpu": 10 * size_bytes(model)})
    assert plan.source.blocks == 1
