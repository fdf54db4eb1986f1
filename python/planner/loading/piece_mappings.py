"""Tensors that lie in files in pieces, as one piece of memory that nothing is copied to."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import torch

from planner.checkpoint.files import StoredFile
from planner.loading.reading import map_pieces
from planner.loading.recipe import Pieces

__all__ = ["PieceMappings", "can_be_mapped"]

# A mapping costs as much as copying some pages, and its two borders are pages of their own.
_LEAST_PIECE_BYTES: Final = 16 * mmap.PAGESIZE
# Where a tensor of float32 begins elsewhere, kernels add in another order; memory that others put pieces into begins there.
_VECTOR_BYTES: Final = 16
# Of all models of a process. Linux allows 65 530 mappings, a piece and its border are two, and others need some.
_MOST_PIECES: Final = 12_000

_Key: TypeAlias = tuple[tuple[int, int, int], ...]


class PieceMappings:
    """Mappings of the files of one checkpoint in which pieces lie one after the other.

    Args:
        files: its files.

    Guarantee: a tensor is mapped once, so that all who have it see what one of them writes, as with views of a file. What is written
        stays in this process.
    """

    def __init__(self, files: Sequence[StoredFile]) -> None:
        self._files = files
        self._is_promised: dict[_Key, bool] = {}
        self._memory: dict[_Key, tuple[Any, int]] = {}

    def has(self, recipe: Pieces) -> bool:
        """Whether a tensor is had without copying; the same answer each time."""
        key = _key(recipe)
        if key not in self._is_promised:
            self._is_promised[key] = can_be_mapped(recipe) and _take(self, len(recipe.pieces))
        return self._is_promised[key]

    def tensor(self, recipe: Pieces) -> torch.Tensor:
        """A tensor for which :meth:`has` is true.

        Raises:
            CheckpointError: a file was changed since it was opened. Fields: ``file``, ``reason``.
            OffloadError: the system refuses. Fields: ``name``.
        """
        key = _key(recipe)
        memory = self._memory.get(key)
        if memory is None:
            found = map_pieces(list(self._files), list(key))
            assert found is not None, "can_be_mapped knows what pages allow"
            # Another thread may have been first; both have to see one piece of memory.
            memory = self._memory.setdefault(key, found)
        mapping, first = memory
        count = recipe.nbytes // recipe.dtype.itemsize
        return torch.frombuffer(mapping, dtype=recipe.dtype, count=count, offset=first).view(recipe.shape)

    def is_mapped(self, recipe: Pieces) -> bool:
        """Whether somebody has had a tensor, and so may have written into it."""
        return _key(recipe) in self._memory


def can_be_mapped(recipe: Pieces) -> bool:
    """Whether pages allow pieces to lie one after the other in memory, and it is worth it.

    A page of memory is a page of a file, so all pieces have to begin at the same place of a page as they will in memory.
    """
    if recipe.nbytes < _LEAST_PIECE_BYTES * len(recipe.pieces):
        return False
    first = recipe.pieces[0][0].begin
    item_bytes = recipe.dtype.itemsize
    is_aligned = first % (_VECTOR_BYTES if item_bytes >= torch.float32.itemsize else item_bytes) == 0
    return is_aligned and all((row.begin - at - first) % mmap.PAGESIZE == 0 for row, at in recipe.pieces)


def _key(recipe: Pieces) -> _Key:
    return tuple((row.file, row.begin, row.end) for row, _ in recipe.pieces)


# By owner's id, pieces that are mapped. No lock, which a fork could leave taken: threads that meet here may take a few too many.
_taken: dict[int, int] = {}


def _take(owner: PieceMappings, count: int) -> bool:
    """Takes so many pieces until their owner goes; False where they are too many."""
    if sum(list(_taken.values())) + count > _MOST_PIECES:
        return False
    if id(owner) not in _taken:
        weakref.finalize(owner, _taken.pop, id(owner), None).atexit = False
    _taken[id(owner)] = _taken.get(id(owner), 0) + count
    return True
