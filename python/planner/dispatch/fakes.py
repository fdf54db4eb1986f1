"""torch's fake tensors: shape, dtype and device without values. Verifying dispatches a model of these."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

__all__ = ["address_of", "is_fake", "without_fakes"]


def is_fake(tensor: Any) -> bool:
    """Whether this is a fake tensor. Its attributes are torch's own, and say where it lies."""
    return isinstance(tensor, FakeTensor)


def address_of(tensor: torch.Tensor) -> int:
    """Where a tensor's values begin; 0 where it has none."""
    return 0 if isinstance(tensor, FakeTensor) else tensor.data_ptr()


def without_fakes() -> AbstractContextManager[Any]:
    """Within, new tensors are what they would be without torch's mode for fake ones."""
    return unset_fake_temporarily()
