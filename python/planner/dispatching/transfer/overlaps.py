"""Whether two tensors have bytes in common."""

from __future__ import annotations

import torch
from torch._C._functorch import is_functorch_wrapped_tensor

from planner.dispatching.tensors.fakes import without_fakes

__all__ = ["shares_bytes"]

# Larger views are not looked through element by element; one whose bytes begin before the other's end counts as in common.
_LOOKED_AT = 1 << 27


def shares_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether what is written into one tensor can be read in another one.

    Args:
        one: a tensor; sparse tensors and those inside torch's transforms never count.
        other: another one.

    Cost: a bool for each element between the first and the last one, if both lie in one storage and may overlap.
    """
    if not (_has_storage(one) and _has_storage(other)):
        return False
    if one.untyped_storage()._cdata != other.untyped_storage()._cdata or 0 in (one.numel(), other.numel()):
        return False
    first, last = _span(one)
    its_first, its_last = _span(other)
    if last <= its_first or its_last <= first:
        return False
    start, end = min(first, its_first), max(last, its_last)
    size = one.element_size()
    is_told = size == other.element_size() and (first - its_first) % size == 0
    if not is_told or end - start > _LOOKED_AT:
        return True
    # Columns of one matrix lie between one another and share nothing.
    with without_fakes(), torch.inference_mode(False):
        mask = torch.zeros((end - start) // size, dtype=torch.bool, device="cpu")
        _view(mask, one, (first - start) // size).fill_(True)
        return bool(_view(mask, other, (its_first - start) // size).any())


def _has_storage(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not is_functorch_wrapped_tensor(tensor)


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The first byte in the storage, and the one behind the last."""
    begins = int(tensor.storage_offset())
    steps = sum(int((size - 1) * stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begins * tensor.element_size(), (begins + steps + 1) * tensor.element_size()


def _view(mask: torch.Tensor, tensor: torch.Tensor, offset: int) -> torch.Tensor:
    return mask.as_strided(tensor.shape, tensor.stride(), offset)
