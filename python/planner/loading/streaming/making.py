"""Tensors in a buffer: views of it, and what is cast or computed there."""

from __future__ import annotations

from collections.abc import Callable

import torch

from planner.errors import OffloadError
from planner.loading.recipe import Conversion, bytes_of
from planner.loading.stored import StoredTensor
from planner.loading.streaming.layout import BlockLayout, Cast, Computation, PlacedInBuffer

__all__ = ["make_tensors", "tensor_in"]


def tensor_in(memory: memoryview, placed: PlacedInBuffer) -> torch.Tensor:
    """A tensor in a buffer; it holds the buffer as long as anybody has it."""
    size_bytes = bytes_of(placed.shape, placed.dtype)
    if size_bytes == 0:
        return torch.empty(placed.shape, dtype=placed.dtype)
    count = size_bytes // placed.dtype.itemsize
    return torch.frombuffer(memory, dtype=placed.dtype, count=count, offset=placed.at).view(placed.shape)


def make_tensors(layout: BlockLayout, memory: memoryview) -> None:
    """Casts and computes what a layout makes, after the buffer was read.

    Raises:
        OffloadError: a cast makes finite values infinite. Fields: ``name``.
    """
    made: dict[Conversion, dict[str, torch.Tensor]] = {}
    with torch.inference_mode(False), torch.no_grad():
        for step in layout.made:
            values = (
                tensor_in(memory, step.source)
                if isinstance(step, Cast)
                else step.recipe.compute(_reads(step, memory), made)
            )
            target = tensor_in(memory, step.target)
            target.copy_(values)
            _require_finite(step.name, values, target)


def _reads(step: Computation, memory: memoryview) -> Callable[[StoredTensor], torch.Tensor]:
    return lambda row: tensor_in(memory, step.sources[row.name])


def _require_finite(name: str, values: torch.Tensor, target: torch.Tensor) -> None:
    """Raises OffloadError for values that the dtype they were cast to cannot hold."""
    if not (values.is_floating_point() and target.is_floating_point()):
        return
    if torch.finfo(target.dtype).max >= torch.finfo(values.dtype).max:
        return
    count = int((values.isfinite() & ~target.isfinite()).sum())
    if count:
        raise OffloadError(
            f"'{name}': {count} of its values are finite in {values.dtype} and not in {target.dtype}; load it with another dtype",
            name=name,
        )
