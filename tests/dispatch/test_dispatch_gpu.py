"""The same on a real card: answers, streams, pinned memory, and graphs that must not be captured."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.dispatching.tensors.placeholder import is_offloaded

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


class Sum(nn.Module):
    """Two parts, and what is done with what they give."""

    def __init__(self, mix: Any) -> None:
        super().__init__()
        self.left, self.right, self.mix = nn.Linear(8, 8), nn.Linear(8, 8), mix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.mix(self.left(x), self.right(x))
        return result


def written(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a += b
    a[:, b[0].argmax()] = b[0, 0]
    return a.index_put_((torch.arange(3, device=b.device),), b[:3])


# CUDA has a message for each, and no word of devices in some.
MIXES: dict[str, Any] = {
    "add": torch.add,
    "matmul": lambda a, b: a @ b.T @ a,
    "linear": lambda a, b: nn.functional.linear(a, b, b[:, 0]),
    "addmm": lambda a, b: torch.addmm(a, b @ b.T, a),
    "baddbmm": lambda a, b: torch.baddbmm(a[None], (b @ b.T)[None], a[None]),
    "convolution": lambda a, b: nn.functional.conv1d(a[None], b[None, :, :3].expand(2, -1, -1)),
    "layer norm": lambda a, b: nn.functional.layer_norm(a, (8,), b[0], b[1]),
    "attention": lambda a, b: nn.functional.scaled_dot_product_attention(a[None], b[None], b[None]),
    "mask": lambda a, b: nn.functional.scaled_dot_product_attention(
        a[None], a[None], a[None], attn_mask=b @ b.T
    ),
    "cat": lambda a, b: torch.cat([a, b]) + torch.stack([b, a]).flatten(0, 1),
    "embedding": lambda a, b: nn.functional.embedding(b.argmax(1), a),
    "lookups": lambda a, b: (
        a.gather(0, b.argsort(0) % 5) + a.index_select(0, b.argmax(1) % 5) + a[b.argmax(1) % 5]
    ),
    "masks": lambda a, b: torch.where(b > 0, a, b) + a.masked_fill(b > 0, 1.0),
    "scatter": lambda a, b: a.clone().index_add_(0, b.argmax(1) % 5, b),
    "einsum": lambda a, b: torch.einsum("ij,kj->ik", a, b),
    "written": written,
    "statistics": lambda a, b: nn.functional.batch_norm(a, b[0].clone(), b[1].abs(), training=True),
    "each": lambda a, b: torch.stack(torch._foreach_add([a, b], [b, a])),
    "recurrent": lambda a, b: torch.gru_cell(a, b, torch.cat([b[:3]] * 8), torch.cat([a[:3]] * 8)),
    "grid": lambda a, b: nn.functional.grid_sample(a[None, None], b[None, :4, :, None].expand(-1, -1, -1, 2)),
}


@pytest.mark.parametrize("order", [("left", "right"), ("right", "left")])
@pytest.mark.parametrize("mix", MIXES)
@torch.no_grad()
def test_the_models_own_code_mixes_card_and_cpu(mix: str, order: tuple[str, str]) -> None:
    torch.manual_seed(0)
    net, x = Sum(MIXES[mix]), torch.randn(8, 8)
    want = copy.deepcopy(net).double()(x.double()).float()
    planner.dispatch(net, {order[0]: 0, order[1]: "cpu"}, execution_map={order[1]: "cpu"})
    for _ in range(2):
        found = net(x.to(0))
        assert found.device == torch.device("cuda", 0) and torch.allclose(found.cpu(), want, atol=1e-3)
    assert torch._C._len_torch_function_stack() == 0
    assert planner.crossings(net)
