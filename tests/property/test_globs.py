"""Globs in constraints against `fnmatch` over all names of small models, and every leaf of them."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from itertools import pairwise
from random import Random
from typing import NamedTuple

import pytest
import torch
from torch import nn

import planner
from planner import InvalidConstraintError
from planner.checker.check import check, is_valid
from planner.names import device_of, is_within

BUDGETS: dict[int | str, int] = {0: 10**6, 1: 10**6, "cpu": 10**6}
WORDS = ["a", "b", "experts", "mlp", "0", "1"]


class Layer(nn.Module):
    """A block."""


class Group(nn.Module):
    """Something with modules inside."""


class Entry(NamedTuple):
    name: str
    device: int | str
    is_glob: bool


def leaf(rng: Random) -> nn.Module:
    module = nn.Module()
    for name in rng.sample(["w", "bias"], rng.randint(1, 2)):
        tensor = torch.empty(rng.randint(1, 9), dtype=torch.uint8, device="meta")
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    return module


def tree(rng: Random, depth: int, is_inside: bool) -> nn.Module:
    if depth == 0 or rng.random() < 0.2:
        return leaf(rng)
    is_layer = not is_inside and rng.random() < 0.5
    module = Layer() if is_layer else Group()
    for name in rng.sample(WORDS, rng.randint(1, 3)):
        module.add_module(name, tree(rng, depth - 1, is_inside or is_layer))
    return module


def model(rng: Random) -> nn.Module:
    root = Group()
    for name in rng.sample(WORDS, 3):
        root.add_module(name, tree(rng, 3, False))
    root.add_module("head", Layer())
    root.head.add_module("a", leaf(rng))
    return root


def names_of(net: nn.Module) -> list[str]:
    """Modules and tensors in preorder, a module's parameters before its modules."""
    found = []
    for name, module in net.named_modules():
        found += [name] if name else []
        found += [f"{name}.{own}" if name else own for own, _ in module.named_parameters(recurse=False)]
    return found


def blocks_and_around(net: nn.Module) -> list[str]:
    """Blocks, and modules with blocks inside: layers, what holds layers, and what stands beside these."""
    layers = [name for name, module in net.named_modules() if isinstance(module, Layer)]
    is_open = {around for layer in layers for around, _ in net.named_modules() if is_within(layer, around)}
    is_open -= set(layers)
    return [name for name, _ in net.named_modules() if name and name.rpartition(".")[0] in is_open]


def glob(rng: Random, names: list[str]) -> str:
    """A name of the model with some of it left open, or something made up."""
    parts = rng.choice(names).split(".")
    if rng.random() < 0.5:
        parts[rng.randrange(len(parts))] = "*"
    else:
        parts = ["*", *parts[rng.randrange(len(parts)) :]]
    return ".".join(parts).replace("0", rng.choice(["0", "?", "[01]"]))


def outermost(pattern: str, names: list[str]) -> list[str]:
    matches = [name for name in names if fnmatchcase(name, pattern)]
    return [name for name in matches if not any(is_within(name, o) and name != o for o in matches)]


def heard(entries: list[Entry]) -> list[Entry]:
    """Of two entries of which one is a glob's, the inner name, and of one name, the one that was written out."""

    def yields(one: Entry, other: Entry) -> bool:
        is_inside = is_within(other.name, one.name) and other.name != one.name
        is_written = other.name == one.name and one.is_glob and not other.is_glob
        return (one.is_glob or other.is_glob) and (is_inside or is_written)

    return [one for one in entries if not any(yields(one, other) for other in entries)]


def test_pins_by_glob_are_what_fnmatch_and_the_nearest_name_say() -> None:
    totals: Counter[str] = Counter()
    for seed in range(500):
        rng = Random(seed)
        net = model(rng)
        names = names_of(net)
        pins: dict[str, int | str] = {
            glob(rng, names): rng.choice([*BUDGETS]) for _ in range(rng.randint(1, 3))
        }
        matched = {said: outermost(said, names) for said in pins}
        whole = blocks_and_around(net)
        for name in rng.sample(whole, rng.choice([0, 0, 1])):
            pins[name] = rng.choice([*BUDGETS])
        entries = [
            Entry(name, device, name != said)
            for said, device in pins.items()
            for name in matched.get(said, [said]) or [said]
        ]
        unknown = [said for said, found in matched.items() if not found]
        settings = {"max_memory": BUDGETS, "no_split_module_classes": ["Layer"], "pin": pins}
        if unknown:
            totals["unknown"] += 1
            with pytest.raises(InvalidConstraintError, match="names nothing in the model"):
                planner.plan(net, **settings)
            continue
        wanted: dict[str, set[int | str]] = {}
        for name, module in net.named_modules():
            if list(module.parameters(recurse=False)):
                speaking = [e for e in entries if is_within(name, e.name) or is_within(e.name, name)]
                wanted[name] = {entry.device for entry in heard(speaking)}
        if any(len(devices) > 1 for devices in wanted.values()):
            totals["contradiction"] += 1
            with pytest.raises(InvalidConstraintError, match="may lie nowhere"):
                planner.plan(net, **settings)
            continue
        totals["planned"] += 1
        plan = planner.plan(net, **settings)
        assert is_valid(check(net, plan.device_map, max_memory=BUDGETS)), (seed, plan.device_map)
        for name, devices in wanted.items():
            for device in devices:
                own = next(f"{name}.{each}" for each, _ in net.get_submodule(name).named_parameters())
                assert device_of(own, plan.device_map) == device, (seed, name, pins, plan.device_map)
    assert min(totals[word] for word in ("planned", "contradiction", "unknown")) > 10, totals


def test_what_a_glob_keeps_together_is_on_one_device() -> None:
    joined = 0
    for seed in range(300):
        rng = Random(seed)
        net = model(rng)
        names = names_of(net)
        pattern = glob(rng, names)
        found = outermost(pattern, names)
        if not found:
            continue
        plan = planner.plan(
            net,
            max_memory={0: 60, 1: 60, "cpu": 10**6},
            no_split_module_classes=["Layer"],
            keep_together=[[pattern]],
        )
        homes = {
            device_of(f"{name}.{own}" if name else own, plan.device_map)
            for name, module in net.named_modules()
            for own, _ in module.named_parameters(recurse=False)
            if any(is_within(f"{name}.{own}", match) for match in found)
        }
        assert len(homes) == 1, (seed, pattern, plan.device_map)
        joined += len(found) > 1
    assert joined > 50


def test_what_a_glob_forbids_holds_for_all_that_it_matches() -> None:
    forbidden = 0
    for seed in range(300):
        rng = Random(seed)
        net = model(rng)
        names = names_of(net)
        said = {glob(rng, names): rng.sample([*BUDGETS], rng.randint(1, 2)) for _ in range(2)}
        matched = {pattern: outermost(pattern, names) for pattern in said}
        if not all(matched.values()):
            continue
        try:
            plan = planner.plan(net, max_memory=BUDGETS, no_split_module_classes=["Layer"], forbid=said)
        except InvalidConstraintError:
            continue
        for name in names:
            for pattern, found in matched.items():
                if any(is_within(name, match) for match in found):
                    home = device_of(name, plan.device_map)
                    assert home is None or home not in said[pattern], (seed, name, said, plan.device_map)
                    forbidden += home is not None
    assert forbidden > 300


def test_a_block_without_matches_stays_whole() -> None:
    rng = Random(1)
    net = Group()
    for name in ("one", "two"):
        net.add_module(name, Layer())
        for part in ("a", "experts"):
            net.get_submodule(name).add_module(part, leaf(rng))
    plan = planner.plan(net, max_memory=BUDGETS, no_split_module_classes=["Layer"], pin={"one.*s": "cpu"})
    assert plan.source.blocks == 3
    assert [*pairwise(plan.device_map)] == [("one.a", "one.experts"), ("one.experts", "two")]
