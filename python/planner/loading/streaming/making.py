"""What is cast or computed in a buffer after it was read."""

from __future__ import annotations

from collections.abc import Callable

import torch

from planner.errors import OffloadError
from planner.loading.casting import can_overflow, lost_numbers, overflow_words
from planner.loading.open_files import tensor_in
from planner.loading.recipe import ConverterRun
from planner.loading.stored import StoredTensor
from planner.loading.streaming.layout import BlockLayout, CastTensor, ComputedTensor, PlacedInBuffer

__all__ = ["make_tensors", "placed_tensor"]


def placed_tensor(memory: memoryview, placed: PlacedInBuffer) -> torch.Tensor:
    """A tensor in a buffer; it holds the memory's object as long as anybody has it."""
    return tensor_in(memory, placed.at, placed.dtype, placed.shape)


def make_tensors(layout: BlockLayout, memory: memoryview) -> None:
    """Casts and computes what a layout makes.

    Raises:
        OffloadError: a cast would make finite numbers infinite. Fields: ``name``.
    """
    made: dict[ConverterRun, dict[str, torch.Tensor]] = {}
    with torch.inference_mode(False), torch.no_grad():
        for step in layout.made:
            values = (
                placed_tensor(memory, step.source)
                if isinstance(step, CastTensor)
                else step.recipe.compute(_reads(step, memory), made)
            )
            target = placed_tensor(memory, step.target)
            target.copy_(values)
            if can_overflow(values.dtype, target.dtype):
                lost = lost_numbers(values, target)
                if lost:
                    raise OffloadError(
                        overflow_words(step.name, lost, values.dtype, target.dtype), name=step.name
                    )


def _reads(step: ComputedTensor, memory: memoryview) -> Callable[[StoredTensor], torch.Tensor]:
    return lambda row: placed_tensor(memory, step.sources[row.name])
