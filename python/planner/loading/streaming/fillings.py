"""Tensors cut into what a slot of bounded size takes at once, in the order of the files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from planner.loading.casting import can_overflow
from planner.loading.recipe import Computed, Part, Pieces
from planner.loading.stored import StoredTensor
from planner.loading.streaming.layout import PAGE_BYTES, BlockLayout, lay_out
from planner.loading.weights import WantedTensor, sources_of

__all__ = ["Filling", "Slice", "cast_there", "fillings_of", "position_of"]

# Widened where it goes, a slice lies there twice for a moment.
_WIDENED_BYTES = 16 << 20


class Slice(NamedTuple):
    """Consecutive elements of a tensor.

    Args:
        name: of the tensor.
        first: its element that comes first.
        length: how many.
        recipe: how they come out of the files.
        dtype: the dtype that they have when they leave the slot.
    """

    name: str
    first: int
    length: int
    recipe: StoredTensor | Part | Computed
    dtype: torch.dtype

    @property
    def slot_bytes(self) -> int:
        """The most that it takes in a slot: what is read, page by page, and what is made of it."""
        read = [self.recipe] if not isinstance(self.recipe, Computed) else self.recipe.sources
        read_bytes = sum(row.nbytes + 2 * PAGE_BYTES for row in read)
        is_made = isinstance(self.recipe, Computed) or self.recipe.dtype != self.dtype
        return read_bytes + (self.length * self.dtype.itemsize + PAGE_BYTES if is_made else 0)


@dataclass(frozen=True, slots=True, eq=False)
class Filling:
    """What a slot is filled with at once.

    Args:
        layout: what is read, and where each slice comes to lie; a slice is known by its number.
        slices: what is in it.
    """

    layout: BlockLayout
    slices: tuple[Slice, ...]

    @property
    def position(self) -> tuple[int, int]:
        """File and byte at which reading begins."""
        return _place(self.slices[0])

    @classmethod
    def of(cls, slices: Iterable[Slice]) -> Filling:
        """A filling with some slices."""
        listed = tuple(slices)
        recipes = {str(number): row.recipe for number, row in enumerate(listed)}
        dtypes = {str(number): row.dtype for number, row in enumerate(listed)}
        return cls(lay_out(recipes, dtypes), listed)


def cast_there(stored: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether a cast is made on the accelerator: widening, which saves bytes on the way and is the same number anywhere."""
    is_plain = stored in _WIDENED and wanted in _WIDENED
    return is_plain and stored.itemsize < wanted.itemsize and not can_overflow(stored, wanted)


_WIDENED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def position_of(wanted: WantedTensor) -> tuple[int, int]:
    """Where in the files a tensor begins; files are read in this order."""
    return min((_position(row) for row in _read_for(wanted)), default=(0, 0))


def fillings_of(
    tensors: Iterable[WantedTensor], most_bytes: int, *, stay_here: bool = False
) -> Iterator[Filling]:
    """Fillings that bring some tensors where they go, in the order of the files.

    Args:
        tensors: each name once.
        most_bytes: of a filling; only what has to be computed as a whole may be larger.
        stay_here: whether they go to other memory of the CPU, where all casts are made on the way out of the slot.
    """
    taken: list[Slice] = []
    taken_bytes = 0
    for row in sorted(
        (row for each in tensors for row in _slices(each, most_bytes, stay_here=stay_here)), key=_place
    ):
        if taken and taken_bytes + row.slot_bytes > most_bytes:
            yield Filling.of(taken)
            taken, taken_bytes = [], 0
        taken.append(row)
        taken_bytes += row.slot_bytes
    if taken:
        yield Filling.of(taken)


def _place(row: Slice) -> tuple[int, int]:
    rows = [row.recipe] if not isinstance(row.recipe, Computed) else row.recipe.sources
    return min(_position(each) for each in rows)


def _position(row: StoredTensor | Part) -> tuple[int, int]:
    return (row.source.file if isinstance(row, Part) else row.file, row.begin)


def _read_for(wanted: WantedTensor) -> Iterable[StoredTensor | Part]:
    return [wanted.recipe] if isinstance(wanted.recipe, Part) else sources_of(wanted.recipe)


def _slices(wanted: WantedTensor, most_bytes: int, *, stay_here: bool) -> Iterator[Slice]:
    """A tensor cut into slices of which each fits into a slot."""
    recipe = wanted.recipe
    dtype = recipe.dtype if stay_here or cast_there(recipe.dtype, wanted.dtype) else wanted.dtype
    if isinstance(recipe, Computed):
        count = math.prod(recipe.shape)
        if count:
            yield Slice(wanted.name, 0, count, recipe, dtype)
        return
    item_bytes = recipe.dtype.itemsize
    # An element in the slot: as it is read, and cast.
    room_bytes = item_bytes + (dtype.itemsize if dtype != recipe.dtype else 0)
    most = (most_bytes - 3 * PAGE_BYTES) // room_bytes
    if wanted.dtype != recipe.dtype:
        most = min(most, _WIDENED_BYTES // item_bytes)
    rows = recipe.pieces if isinstance(recipe, Pieces) else ((recipe, 0),)
    for row, at in rows:
        source = row.source if isinstance(row, Part) else row
        begin = row.begin
        while begin < row.end:
            end = _cut(begin, row.end, most * item_bytes, item_bytes)
            count = (end - begin) // item_bytes
            first = (at + begin - row.begin) // item_bytes
            yield Slice(wanted.name, first, count, Part(source, begin, end, (count,)), dtype)
            begin = end


def _cut(begin: int, end: int, most_bytes: int, item_bytes: int) -> int:
    """Where a slice ends that begins at a byte of a file: at the end of a page where that can be, so that none is read twice."""
    if end - begin <= most_bytes:
        return end
    cut = begin + most_bytes
    at_page = cut - cut % PAGE_BYTES
    return at_page if at_page > begin and (at_page - begin) % item_bytes == 0 else cut
