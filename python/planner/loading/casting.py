"""Casts between floating dtypes that lose no number."""

from __future__ import annotations

import torch

from planner.errors import OffloadError

__all__ = ["can_be_cast", "can_overflow", "cast"]


_ORDERED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def can_be_cast(stored: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether a tensor of a file may become one of another dtype: floating numbers may; integers and bools are what they are."""
    return stored == wanted or (stored.is_floating_point and wanted.is_floating_point)


def can_overflow(stored: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether there are finite numbers of one dtype that another one cannot hold."""
    if stored == wanted or not (stored.is_floating_point and wanted.is_floating_point):
        return False
    return torch.finfo(stored).max > torch.finfo(wanted).max


def cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """A tensor in a dtype; itself if it has it.

    Raises:
        OffloadError: finite numbers would become infinite. Fields: ``name``.
    """
    if tensor.dtype == dtype:
        return tensor
    found = tensor.to(dtype)
    if can_overflow(tensor.dtype, dtype):
        lost = lost_numbers(tensor, found)
        if lost:
            raise OffloadError(overflow_words(name, lost, tensor.dtype, dtype), name=name)
    return found


def lost_numbers(tensor: torch.Tensor, found: torch.Tensor) -> int:
    """How many finite numbers of a tensor are not finite in its cast. Cost: no memory where all are."""
    if found.dtype in _ORDERED and found.numel():
        # A NaN is the smallest and the largest where there is one.
        smallest, largest = torch.aminmax(found)
        if torch.isfinite(smallest) and torch.isfinite(largest):
            return 0
    return int((~torch.isfinite(found) & torch.isfinite(tensor)).sum())


def overflow_words(name: str, lost: int, stored: torch.dtype, wanted: torch.dtype) -> str:
    """What is said of numbers that a dtype cannot hold."""
    most = torch.finfo(wanted).max
    return (
        f"{lost} numbers of '{name}' are beyond {most:.6g}, the largest of {wanted}, and would become infinite; load it as {stored}, or "
        "as bfloat16, which has the range of float32"
    )
