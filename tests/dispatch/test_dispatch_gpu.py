"""The same on a real card: answers, streams, pinned memory, and graphs that must not be captured."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.dispatch.guard import is_offloaded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def stack(layers: int = 6, width: int = 512) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).requires_grad_(False)


def offloaded(model: nn.Module, **options: Any) -> nn.Module:
    return planner.dispatch(
        model, {str(index): "cpu" if index else 0 for index in range(len(model))}, **options
    )


def layer_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model[1].parameters())


@pytest.mark.parametrize("layers_at_once", [1, 2, 3])
def test_answers_are_equal_with_and_without_copying_ahead(layers_at_once: int) -> None:
    model, x = stack(), torch.randn(64, 512, device="cuda:0")
    want = copy.deepcopy(model).to(0)(x)
    offloaded(model, staging_bytes={0: layers_at_once * layer_bytes(model)})
    for _ in range(50):
        assert model(x).equal(want)
    assert is_offloaded(model[1].weight)


def test_memory_goes_back_after_each_forward() -> None:
    model, x = stack(), torch.randn(64, 512, device="cuda:0")
    offloaded(model, staging_bytes={0: 2 * layer_bytes(model)})
    model(x)
    torch.cuda.synchronize()
    used_bytes = torch.cuda.memory_allocated(0)
    for _ in range(5):
        model(x)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated(0) == used_bytes
    assert model[3]._hf_hook.weights_map["weight"].is_pinned()


def test_gradients_through_blocks_that_were_copied_ahead() -> None:
    gradients = []
    for is_spread in (False, True):
        model = stack()
        if is_spread:
            offloaded(model, staging_bytes={0: 2 * layer_bytes(model)})
        else:
            model.to(0)
        for _ in range(3):
            x = torch.ones(8, 512, device="cuda:0", requires_grad=True)
            model(x).square().mean().backward()
        gradients.append(x.grad)
    assert gradients[0].equal(gradients[1])


def test_a_graph_over_an_offloaded_block_is_not_captured() -> None:
    model, x = stack(), torch.randn(4, 512, device="cuda:0")
    offloaded(model)
    want = model(x)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(planner.OffloadError, match="CUDA graph"), torch.cuda.graph(graph):
        model(x)
    torch.cuda.synchronize()
    assert model(x).equal(want)
