"""torch's fake tensors: shape, dtype and device without values. Verifying dispatches a model of these."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

__all__ = ["address_of", "is_fake", "without_fakes"]


def is_fake(tensor: Any) -> bool:
    """Whether this is a fake tensor. Its attributes are torch's own, and say where it lies."""
    return isinstance(tensor, FakeTensor)


def address_of(tensor: torch.Tensor) -> int:
    """Where a tensor's values begin; 0 where it has none, or torch's transforms (``vmap``, ``grad``) stand before them."""
    if isinstance(tensor, FakeTensor) or is_functorch_wrapped_tensor(tensor):
        return 0
    return tensor.data_ptr()


def without_fakes() -> AbstractContextManager[Any]:
    """Within, new tensors are what they would be without torch's mode for fake ones."""
    return unset_fake_temporarily()
