"""What kernels allocate that a recording on the meta device would not see, or would see otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from planner.choices import AttentionKernel

__all__ = ["COMPOSED", "attention"]

_HALVES = (torch.float16, torch.bfloat16)
# The widest head that torch's fused kernel takes.
_WIDEST = 256


def _safe_softmax(x: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    out = torch.softmax(x, dim, dtype)
    lowest = torch.scalar_tensor(float("-inf"), dtype=out.dtype, device=x.device)  # lives until the end
    is_masked = x.eq(lowest)
    rows = is_masked.all(dim, keepdim=True)
    return out.masked_fill_(rows, 0)


def _embedding(
    weight: torch.Tensor,
    indices: torch.Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> torch.Tensor:
    flat = indices.reshape(-1)  # a copy, if they are expanded
    return weight.index_select(0, flat).view(*indices.shape, weight.shape[1])


def _layer_norm(x: torch.Tensor, *args: Any) -> Any:
    # Patches of pictures are normalised as they come out of a convolution, turned around.
    rows = x.contiguous()
    return torch.ops.aten.native_layer_norm.default(rows, *args)


COMPOSED: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._safe_softmax.default: _safe_softmax,
    torch.ops.aten.embedding.default: _embedding,
    torch.ops.aten.native_layer_norm.default: _layer_norm,
}
"""Operators whose kernels are made of other operators on every device: what these make is real, and no mode sees it.

Source: torch 2.15, ``layer_norm_cpu`` and ``layer_norm_cuda`` begin with ``input.expect_contiguous()``.
"""


def attention(
    kernel: AttentionKernel,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What ``scaled_dot_product_attention`` allocates on an accelerator with a fused kernel, where torch would choose one.

    Args:
        kernel: "fused" or "efficient"; the others as torch has them.

    Source: torch 2.15, sdp_utils.cpp: the fused kernel takes no mask, equal widths of heads up to 256, half precision; the efficient
        one takes a mask, as floats, expanded to all heads.
    """
    is_even = query.shape[-1] == key.shape[-1] == value.shape[-1]
    is_flash = kernel == "fused" and attn_mask is None and query.dtype in _HALVES
    if is_flash and is_even and query.shape[-1] <= _WIDEST:
        found: tuple[torch.Tensor, ...] = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )
        return found[0]
    if key.shape[-3] != query.shape[-3]:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    bias = None
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.empty_like(attn_mask, dtype=query.dtype)
        bias = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    found = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, False, dropout_p, is_causal, scale=scale
    )
    return found[0]
