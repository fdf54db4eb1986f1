"""Models whose parts have the sizes that a test names."""

from __future__ import annotations

import torch
from torch import nn


def model_of(*sizes_bytes: int) -> nn.Module:
    """Parts ``part0``, ``part1``, … with one tensor each, of so many bytes."""
    model = nn.Module()
    for index, size in enumerate(sizes_bytes):
        part = nn.Module()
        part.w = nn.Parameter(torch.empty(size, dtype=torch.int8, device="meta"), requires_grad=False)
        model.add_module(f"part{index}", part)
    return model
