"""Trees of exact sizes in bytes, as the table of reproduced bugs writes them."""

from __future__ import annotations

import torch
from torch import nn


def parameter(size_bytes: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(size_bytes, dtype=torch.int8, device="meta"), requires_grad=False)


class Leaf(nn.Module):
    """One parameter ``w`` of so many bytes."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self.w = parameter(size_bytes)


class Blk(nn.Module):
    """Children l0, l1, … of so many bytes."""

    def __init__(self, *sizes_bytes: int) -> None:
        super().__init__()
        for index, size in enumerate(sizes_bytes):
            self.add_module(f"l{index}", Leaf(size))


def root(**children: nn.Module) -> nn.Module:
    """A root with these children."""
    model = nn.Module()
    for name, child in children.items():
        model.add_module(name, child)
    model.all_tied_weights_keys = {}  # type: ignore[assignment]
    return model


def buffer(size_bytes: int) -> torch.Tensor:
    return torch.empty(size_bytes, dtype=torch.int8, device="meta")


def tie(model: nn.Module, **names: str) -> nn.Module:
    """Ties by keyword: tied name (dots as double underscores) = source; noted as transformers models note it."""
    for written, source in names.items():
        name = written.replace("__", ".")
        path, _, own = name.rpartition(".")
        model.get_submodule(path)._parameters[own] = model.get_parameter(source)
        model.all_tied_weights_keys[name] = source  # type: ignore[index]
    return model
