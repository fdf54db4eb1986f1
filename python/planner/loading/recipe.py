"""How one live tensor comes out of what files hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from planner.loading.stored import StoredTensor

__all__ = ["Computed", "ConverterRun", "Part", "Pieces", "Read", "Recipe", "bytes_of"]

Read: TypeAlias = Callable[[StoredTensor], Tensor]
"""Gives a stored tensor's values."""


def bytes_of(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a dense tensor."""
    return math.prod(shape) * dtype.itemsize


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring bytes of one stored tensor, such as some of its rows, under a shape of their own.

    Args:
        source: which tensor.
        begin: first byte in the file, as in :class:`StoredTensor`.
        end: the byte behind the last.
        shape: of the live tensor; its dtype is the source's.
    """

    source: StoredTensor
    begin: int
    end: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored tensor."""
        return self.source.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Pieces:
    """Stored tensors that lie in the live one as contiguous pieces, each byte of it in exactly one.

    Args:
        dtype: of the live tensor and of all pieces.
        shape: of the live tensor.
        pieces: stored tensors, each with the byte of the live tensor at which it begins.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[tuple[StoredTensor, int], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the live tensor, which are as many in files."""
        return bytes_of(self.shape, self.dtype)


class Converter(Protocol):
    """transformers' ``WeightConverter``."""

    def add_tensor(
        self, target_key: str, source_key: str, source_pattern: str, future: Callable[[], Tensor]
    ) -> None: ...

    def convert(self, layer_name: str, *, model: object, config: object) -> Mapping[str, object]: ...


@dataclass(frozen=True, slots=True, eq=False)
class ConverterRun:
    """One use of a converter: its stored tensors become one or several live ones.

    Args:
        converter: never used itself, because a converter can be used once; copies of it are.
        sources: stored tensors with the pattern that each matched, in the order in which transformers would meet them.
        name: the first of the live names, by which the converter knows the others.
        model: what operations ask of a model: its configuration, and the sizes of these live tensors.
    """

    converter: Converter
    sources: tuple[tuple[str, StoredTensor], ...]
    name: str
    model: ModelSizes

    def run(self, read: Read) -> dict[str, Tensor]:
        """All live tensors that it makes, by name."""
        converter = deepcopy(self.converter)
        for pattern, row in self.sources:
            converter.add_tensor(self.name, row.name, pattern, partial(read, row))
        made = converter.convert(self.name, model=self.model, config=self.model.config)
        return {name: _one(value) for name, value in made.items()}


def _one(value: object) -> Tensor:
    first = value[0] if isinstance(value, list) else value
    assert isinstance(first, Tensor), "a converter makes tensors, or lists of one tensor"
    return first


@dataclass(frozen=True, slots=True, eq=False)
class ModelSizes:
    """What transformers' operations ask of a model, without the model.

    Args:
        config: the model's configuration.
        shapes: of the live tensors that a conversion makes.
    """

    config: object
    shapes: Mapping[str, tuple[int, ...]]

    def get_parameter(self, name: str) -> Tensor:
        """A tensor of that size without values."""
        return torch.empty(self.shapes[name], device="meta")

    get_parameter_or_buffer = get_parameter


@dataclass(frozen=True, slots=True)
class Computed:
    """Anything else: made from copies by transformers' own converter.

    Args:
        dtype: of what the converter makes.
        shape: likewise.
        sources: the stored tensors that it needs.
        conversion: what makes it; one conversion may make several live tensors.
        name: which of them this is.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    sources: tuple[StoredTensor, ...]
    conversion: ConverterRun
    name: str

    @property
    def nbytes(self) -> int:
        """Bytes of the live tensor."""
        return bytes_of(self.shape, self.dtype)

    def compute(self, read: Read, made: dict[ConverterRun, dict[str, Tensor]] | None = None) -> Tensor:
        """The values.

        Args:
            read: gives stored tensors; they may be views of files, and the result may be a view of them.
            made: results of conversions, looked up and added to, so that several live tensors of one conversion cost one.
        """
        if made is None:
            return self.conversion.run(read)[self.name]
        if self.conversion not in made:
            made[self.conversion] = self.conversion.run(read)
        return made[self.conversion][self.name]


Recipe: TypeAlias = StoredTensor | Part | Pieces | Computed
"""A live tensor as stored, or how it is made."""
