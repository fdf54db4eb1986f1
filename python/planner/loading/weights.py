"""Offloaded weights by live name, each made from the checkpoint's own files when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from planner.dispatching.offload.reads_ahead import Streams
from planner.errors import OffloadError
from planner.loading.casting import cast
from planner.loading.open_files import OpenFiles, tensor_in
from planner.loading.recipe import Computed, Part, Pieces, Recipe
from planner.loading.stored import StoredTensor
from planner.loading.written_pages import are_unwritten

__all__ = [
    "FileWeights",
    "WantedTensor",
    "as_slot_value",
    "files_of",
    "is_in_place",
    "made",
    "source_view",
    "sources_of",
]


_NONE: Mapping[str, torch.Tensor] = MappingProxyType({})


class WantedTensor(NamedTuple):
    """A tensor of the model, and how it comes out of the files.

    Args:
        name: its live name; of tied ones, the first.
        recipe: where its bytes are.
        dtype: what it is cast to.
        is_parameter: otherwise it is a buffer.
    """

    name: str
    recipe: Recipe
    dtype: torch.dtype
    is_parameter: bool

    @property
    def is_view(self) -> bool:
        """Whether it is bytes of a file as they lie there, where elements can be looked at, so that it need not be made."""
        recipe = self.recipe
        if not isinstance(recipe, StoredTensor | Part) or recipe.dtype != self.dtype:
            return False
        return recipe.begin % self.dtype.itemsize == 0

    @property
    def nbytes(self) -> int:
        """Bytes that it has in memory."""
        return math.prod(self.recipe.shape) * self.dtype.itemsize


class FileWeights(Mapping[str, torch.Tensor]):
    """Offloaded weights by live name.

    Args:
        files: the checkpoint's files.
        wanted: what each name is made from; tied names have one value.
        held: values of names that no file has, which stay in memory.
        lists_files: ``index`` says in which file each is.

    Guarantee: nothing is read before a value is looked at, and nothing of a file that was written to since it was opened. A view is kept, so that what is written into it stays, in memory of this
        process; what has another form in the files is made anew each time. A deep copy reads the same handles, and has memory of its own.
    """

    def __init__(
        self,
        files: OpenFiles,
        wanted: Mapping[str, WantedTensor],
        held: Mapping[str, torch.Tensor] = _NONE,
        *,
        lists_files: bool = False,
    ) -> None:
        self.files = files
        self.lists_files = lists_files
        self.wanted = dict(wanted)
        self.held = dict(held)
        self._kept: dict[str, torch.Tensor] = {}
        self._index: Mapping[str, Mapping[str, str]] | None = None
        # Set by the first one who reads these weights ahead.
        self.streams_again: Callable[[FileWeights], Streams] | None = None

    @property
    def index(self) -> Mapping[str, Mapping[str, str]]:
        """Rows of accelerate's loader of offloaded weights, which PEFT asks for. With rows, it takes the weights for ones that stay in
        files when hooks are taken off; without, it takes them back and places them itself."""
        if self._index is None:
            self._index = dict(self._rows()) if self.lists_files else {}
        return self._index

    def _rows(self) -> Iterator[tuple[str, Mapping[str, str]]]:
        for name, wanted in self.wanted.items():
            if isinstance(wanted.recipe, StoredTensor):
                row = {
                    "safetensors_file": self.files.files[wanted.recipe.file].path,
                    "weight_name": wanted.recipe.name,
                    "dtype": str(wanted.dtype).removeprefix("torch."),
                }
                yield name, row

    def renamed(self, names: Mapping[str, str], held: Mapping[str, torch.Tensor] = _NONE) -> FileWeights:
        """Some of these weights under other names: what was written into a view stays written.

        Args:
            names: by new name, the name here.
            held: values of more names, which stay in memory.
        """
        # What is held must not be read ahead from its file.
        wanted = {
            new: self.wanted[old] for new, old in names.items() if old in self.wanted and new not in held
        }
        also_held = {new: self.held[old] for new, old in names.items() if old in self.held}
        made = FileWeights(self.files, wanted, {**also_held, **held}, lists_files=self.lists_files)
        made._kept, made.streams_again = self._kept, self.streams_again
        return made

    def moved(self, files: OpenFiles, elsewhere: Mapping[str, WantedTensor]) -> FileWeights:
        """The same weights, some of them from another place.

        Args:
            files: these files and more behind them.
            elsewhere: by the name in :class:`WantedTensor`, where some lie now.
        """
        wanted = {name: elsewhere.get(row.name, row) for name, row in self.wanted.items()}
        return FileWeights(files, wanted, self.held, lists_files=self.lists_files)

    def __getstate__(self) -> dict[str, Any]:
        # Views that were written into are the model's own by now.
        written = {name: _copied(self._kept[name]) for name in self._written()}
        held = {name: _copied(tensor) for name, tensor in self.held.items()}
        return {
            "files": self.files,
            "wanted": self.wanted,
            "held": held,
            "lists_files": self.lists_files,
            "streams_again": self.streams_again,
            "_kept": written,
            "_index": None,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> FileWeights:
        copied = memo[id(self)] = FileWeights.__new__(FileWeights)
        copied.__dict__.update(self.__getstate__(), files=deepcopy(self.files, memo))
        return copied

    def _written(self) -> list[str]:
        """Names of kept tensors that have other values than their files, also where no tensor's version tells it.

        Cost: reading those that cannot be told to be as they were: pieces, and all where this process has written into the files' memory.
        """
        recipes = {row.name: row.recipe for row in self.wanted.values() if row.name in self._kept}
        views = [recipe for recipe in recipes.values() if not isinstance(recipe, Pieces)]
        used = {number for recipe in views for number in files_of(recipe)}
        is_written = not are_unwritten(self.files.files[number].map() for number in used)
        doubtful = {
            name: recipe for name, recipe in recipes.items() if is_written or isinstance(recipe, Pieces)
        }
        if not doubtful:
            return []
        self.files.require_same({number for recipe in doubtful.values() for number in files_of(recipe)})
        apart = deepcopy(self.files)
        return [name for name, recipe in doubtful.items() if not _is_as_in(apart, recipe, self._kept[name])]

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self.held:
            return self.held[name]
        wanted = self.wanted[name]
        self.files.require_same(files_of(wanted.recipe))
        kept = self._kept.get(wanted.name)
        if kept is not None:
            return kept
        try:
            value = as_slot_value(made(self.files, wanted), wanted)
        except OSError as error:
            raise OffloadError(f"'{name}' cannot be read from its file: {error}", name=name) from error
        if is_in_place(self.files, wanted):
            # Another thread may have been first; both have to see one tensor.
            value = self._kept.setdefault(wanted.name, value)
        return value

    def __iter__(self) -> Iterator[str]:
        yield from self.wanted
        yield from self.held

    def __len__(self) -> int:
        return len(self.wanted) + len(self.held)

    def __contains__(self, name: object) -> bool:
        return name in self.wanted or name in self.held

    def is_in_file(self, name: str) -> bool:
        """Whether a value is read from a file when it is asked for, or was put in the place of one that was."""
        return name in self


def is_in_place(files: OpenFiles, wanted: WantedTensor) -> bool:
    """Whether a tensor is had as it lies in the files, without copying: as a view, or as pieces that are mapped one after the other."""
    recipe = wanted.recipe
    if isinstance(recipe, Pieces):
        return recipe.dtype == wanted.dtype and files.pieces.has(recipe)
    return wanted.is_view


def sources_of(recipe: Recipe) -> tuple[StoredTensor, ...]:
    """The stored tensors that a tensor is made from."""
    match recipe:
        case StoredTensor():
            return (recipe,)
        case Part():
            return (recipe.source,)
        case Pieces():
            return tuple(row for row, _ in recipe.pieces)
        case Computed():
            return recipe.sources


def files_of(recipe: Recipe) -> Iterable[int]:
    """The numbers of these files."""
    match recipe:
        case StoredTensor():
            return (recipe.file,)
        case Part():
            return (recipe.source.file,)
        case _:
            return {row.file for row in sources_of(recipe)}


def _is_as_in(files: OpenFiles, recipe: Recipe, tensor: torch.Tensor) -> bool:
    """Whether a tensor that was as it lies in the files still is."""
    if (tensor.dtype, tensor.shape) != (recipe.dtype, recipe.shape) or not tensor.is_contiguous():
        return False
    assert not isinstance(recipe, Computed), "what is computed does not lie in files"
    flat = tensor.detach().view(-1).view(torch.uint8)
    rows = recipe.pieces if isinstance(recipe, Pieces) else ((recipe, 0),)
    for row, at in rows:
        (number,) = files_of(row)
        stored = tensor_in(files.files[number].map(), row.begin, torch.uint8, (row.nbytes,))
        if not torch.equal(flat[at : at + row.nbytes], stored):
            return False
    return True


def as_slot_value(tensor: torch.Tensor, wanted: WantedTensor) -> torch.Tensor:
    """What rests for a slot: a frozen parameter where that holds one, so that it can be put there as it is."""
    return nn.Parameter(tensor, requires_grad=False) if wanted.is_parameter else tensor


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    found = tensor.detach().clone()
    return nn.Parameter(found, requires_grad=False) if isinstance(tensor, nn.Parameter) else found


def made(files: OpenFiles, wanted: WantedTensor) -> torch.Tensor:
    """A tensor as it is wanted, on the CPU: a view where that can be, otherwise in new memory.

    Raises:
        OffloadError: a number that the wanted dtype cannot hold. Fields: ``name``.
    """
    return cast(source_view(files, wanted.recipe), wanted.dtype, wanted.name)


def source_view(files: OpenFiles, recipe: Recipe) -> torch.Tensor:
    """A tensor in the dtype of the files, on the CPU."""
    match recipe:
        case StoredTensor():
            return files.view(recipe)
        case Part(source=source, begin=begin, shape=shape):
            return tensor_in(files.files[source.file].map(), begin, source.dtype, shape)
        case Pieces():
            mapped = files.pieces.tensor(recipe) if files.pieces.has(recipe) else None
            return _joined(files, recipe) if mapped is None else mapped
        case Computed():
            return recipe.compute(files.view)


def _joined(files: OpenFiles, recipe: Pieces) -> torch.Tensor:
    whole = torch.empty(recipe.shape, dtype=recipe.dtype)
    flat = whole.view(-1).view(torch.uint8)
    for row, at in recipe.pieces:
        flat[at : at + row.nbytes].copy_(files.view(row).view(-1).view(torch.uint8))
    return whole
