"""Models and plans that the pictures are tested with; all on the meta device."""

from __future__ import annotations

import json
from collections import Counter

import torch
from torch import nn

import planner
from planner import Plan
from planner.devices.keys import DeviceKey
from planner.model.tree import ModuleTree
from planner.report.rows import Rows

MIB = 1 << 20


def tensors(module: nn.Module, **sizes_bytes: int) -> nn.Module:
    """The module with parameters of the sizes named."""
    for name, size_bytes in sizes_bytes.items():
        weight = torch.empty(size_bytes, dtype=torch.uint8, device="meta")
        module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    return module


class Layer(nn.Module):
    """Attention and a perceptron, 10 MiB, and a part without tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = tensors(nn.Module(), q=MIB, k=MIB, v=MIB)
        self.mlp = nn.Module()
        self.mlp.up = tensors(nn.Module(), weight=3 * MIB)
        self.mlp.down = tensors(nn.Module(), weight=4 * MIB)
        self.mlp.act = nn.SiLU()


class Decoder(nn.Module):
    """Embedding, layers and a head that is tied to the embedding."""

    _no_split_modules = ("Layer",)

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed = tensors(nn.Module(), weight=5 * MIB)
        self.model.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.model.norm = tensors(nn.Module(), weight=1000)
        self.head = nn.Module()
        self.head.weight = self.model.embed.weight


def offloaded() -> tuple[Plan, ModuleTree]:
    """Twelve layers on two unlike cards and the cpu, with headroom and room for streaming."""
    tree = ModuleTree.from_module(Decoder(12))
    budgets = {0: 60 * MIB, 1: 30 * MIB, "cpu": 300 * MIB}
    return planner.plan(tree, max_memory=budgets, headroom={0: "5%"}), tree


def resident() -> tuple[Plan, ModuleTree]:
    """Four layers, nothing offloaded."""
    tree = ModuleTree.from_module(Decoder(4))
    return planner.plan(tree, max_memory={0: 30 * MIB, 1: 30 * MIB}), tree


def sequential() -> tuple[Plan, ModuleTree]:
    """accelerate's strategy, with a disk."""
    tree = ModuleTree.from_module(Decoder(4))
    return planner.plan(tree, max_memory={0: 30 * MIB, "disk": 300 * MIB}, strategy="sequential"), tree


def renamed(names: list[str]) -> tuple[Plan, ModuleTree]:
    """A model whose modules have these names, on a card that is too small."""
    root = nn.Module()
    for name in names:
        root.add_module(name, tensors(nn.Module(), weight=100))
    tree = ModuleTree.from_module(root)
    return planner.plan(tree, max_memory={0: 250, "cpu": 100 * len(names)}), tree


def with_device_map(plan: Plan, device_map: dict[str, DeviceKey]) -> Plan:
    """The plan as somebody might have edited it."""
    data = json.loads(plan.to_json())
    data["device_map"] = device_map
    return Plan.from_json(json.dumps(data))


def drawn_bytes(rows: Rows) -> dict[DeviceKey, int]:
    """Bytes by device as the rows have them: each row's own, where it lies."""
    sums: Counter[DeviceKey] = Counter()
    for row, inside in enumerate(rows.children()):
        own = rows.sizes_bytes[row] - sum(rows.sizes_bytes[child] for child in inside)
        if own:
            sums[rows.devices[rows.homes[row]]] += own
    return dict(sums)
