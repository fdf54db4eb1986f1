"""What of files a block needs, and where each of its tensors comes to lie in a buffer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch

from planner.loading.recipe import Computed, Part, Pieces, Recipe, bytes_of
from planner.loading.stored import StoredTensor

__all__ = [
    "LINE_BYTES",
    "PAGE_BYTES",
    "BlockLayout",
    "CastTensor",
    "ComputedTensor",
    "MadeTensor",
    "PlacedInBuffer",
    "Span",
    "lay_out",
]

PAGE_BYTES = 4096
# Of what is made in a buffer; vector instructions read so many at once.
LINE_BYTES = 64


class Span(NamedTuple):
    """Bytes of a file and where they go.

    Args:
        file: number of the file.
        begin: first byte there.
        end: the byte behind the last.
        at: first byte in the buffer.
    """

    file: int
    begin: int
    end: int
    at: int


class PlacedInBuffer(NamedTuple):
    """A tensor in a buffer.

    Args:
        at: its first byte.
        dtype: its dtype.
        shape: its shape.
    """

    at: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class CastTensor(NamedTuple):
    """A tensor that is made by casting another one.

    Args:
        name: its live name.
        source: what was read.
        target: where it goes.
    """

    name: str
    source: PlacedInBuffer
    target: PlacedInBuffer


class ComputedTensor(NamedTuple):
    """A tensor that is made by a converter.

    Args:
        name: its live name.
        recipe: how.
        sources: what was read, by stored name.
        target: where it goes.
    """

    name: str
    recipe: Computed
    sources: Mapping[str, PlacedInBuffer]
    target: PlacedInBuffer


MadeTensor: TypeAlias = CastTensor | ComputedTensor


@dataclass(frozen=True, slots=True, eq=False)
class BlockLayout:
    """What is read for a block, and what is made of it.

    Args:
        spans: what is read, in the order of the files. Those that are joined begin in the buffer where they begin in their page
            and have their first and last page for themselves, so that whole pages can be read in their place.
        made: what is made in the buffer afterwards.
        tensors: where each tensor lies in the end, by live name.
        room_bytes: bytes of the buffer.
    """

    spans: tuple[Span, ...]
    made: tuple[MadeTensor, ...]
    tensors: Mapping[str, PlacedInBuffer]
    room_bytes: int

    @property
    def read_bytes(self) -> int:
        """Bytes of files."""
        return sum(span.end - span.begin for span in self.spans)


def lay_out(recipes: Mapping[str, Recipe], dtypes: Mapping[str, torch.dtype]) -> BlockLayout:
    """The layout of a block.

    Args:
        recipes: of its tensors, by live name.
        dtypes: in which each is wanted.
    """
    made: list[MadeTensor] = []
    tensors: dict[str, PlacedInBuffer] = {}
    buffer = _Buffer(_read_in_place(recipes.values()))
    for name, recipe in recipes.items():
        dtype = dtypes[name]
        if isinstance(recipe, Computed):
            sources = {row.name: buffer.source(row) for row in recipe.sources}
            tensors[name] = buffer.room(dtype, recipe.shape)
            made.append(ComputedTensor(name, recipe, sources, tensors[name]))
            continue
        found = buffer.pieces(recipe) if isinstance(recipe, Pieces) else buffer.source(recipe)
        if found.dtype != dtype:
            target = buffer.room(dtype, found.shape)
            made.append(CastTensor(name, found, target))
            found = target
        tensors[name] = found
    return BlockLayout(tuple(sorted(buffer.spans)), tuple(made), tensors, buffer.size_bytes)


def _read_in_place(recipes: Iterable[Recipe]) -> list[StoredTensor | Part]:
    """What is used as it lies in the file, or made into something else from there."""
    found: list[StoredTensor | Part] = []
    for recipe in recipes:
        if isinstance(recipe, Computed):
            found.extend(recipe.sources)
        elif not isinstance(recipe, Pieces):
            found.append(recipe)
    # Others are read to where they are aligned.
    return [row for row in found if row.nbytes and row.begin % row.dtype.itemsize == 0]


def _file_of(row: StoredTensor | Part) -> int:
    return row.source.file if isinstance(row, Part) else row.file


class _Buffer:
    """Places in a buffer, given one after the other.

    Args:
        rows: what is read in place, together where it lies together.
    """

    def __init__(self, rows: Sequence[StoredTensor | Part]) -> None:
        self.spans: list[Span] = []
        self.size_bytes = 0
        # By file and first byte, where rows begin in the buffer.
        self._places: dict[tuple[int, int], int] = {}
        for file, begin, end in sorted({(_file_of(row), row.begin, row.end) for row in rows}):
            last = self.spans[-1] if self.spans else None
            if last is not None and last.file == file and begin - last.end <= PAGE_BYTES:
                self.spans[-1] = last = last._replace(end=max(last.end, end))
            else:
                last = Span(file, begin, end, self.size_bytes + begin % PAGE_BYTES)
                self.spans.append(last)
            self._places[file, begin] = last.at + begin - last.begin
            self.size_bytes = _rounded_up(last.at + last.end - last.begin, PAGE_BYTES)

    def room(self, dtype: torch.dtype, shape: tuple[int, ...]) -> PlacedInBuffer:
        """Room for one more tensor."""
        at = self.size_bytes
        self.size_bytes = _rounded_up(at + bytes_of(shape, dtype), LINE_BYTES)
        return PlacedInBuffer(at, dtype, shape)

    def source(self, row: StoredTensor | Part) -> PlacedInBuffer:
        """Where a stored tensor, or a part of one, is read to."""
        key = (_file_of(row), row.begin)
        at = self._places.get(key)
        if at is None:
            at = self.room(torch.uint8, (row.nbytes,)).at
            if row.nbytes:
                self.spans.append(Span(key[0], row.begin, row.end, at))
                self._places[key] = at
        return PlacedInBuffer(at, row.dtype, row.shape)

    def pieces(self, recipe: Pieces) -> PlacedInBuffer:
        """Where a tensor is put together."""
        placed = self.room(recipe.dtype, recipe.shape)
        for row, offset in recipe.pieces:
            if row.nbytes:
                self.spans.append(Span(row.file, row.begin, row.end, placed.at + offset))
        return placed


def _rounded_up(size_bytes: int, unit_bytes: int) -> int:
    return -(-size_bytes // unit_bytes) * unit_bytes
