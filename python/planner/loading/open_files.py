"""The files of a checkpoint, each opened once, and the tensors in them as views of their mappings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from planner.checkpoint.files import StoredFile
from planner.errors import OffloadError
from planner.loading.piece_mappings import PieceMappings
from planner.loading.stored import StoredTensor

if TYPE_CHECKING:
    from planner.checkpoint.files import CheckpointFiles, Headers

__all__ = ["OpenFiles", "open_headers", "tensor_in"]


class OpenFiles:
    """The files of a checkpoint from the reading of their headers to the last fetch.

    Args:
        files: opened by the one who has read their headers from these very handles.

    ``pieces`` are tensors that lie in them in pieces and are had without copying.

    Guarantee: a file that is renamed over, or deleted, stays what it was. No file is opened a second time, but one whose handle was
        closed because there are too many, and that one must be the same as before.
    """

    def __init__(self, files: Sequence[StoredFile]) -> None:
        self.files = tuple(files)
        self.pieces = PieceMappings(self.files)

    def __deepcopy__(self, memo: dict[int, Any]) -> OpenFiles:
        # What is written into memory of the copy is the copy's.
        made = memo[id(self)] = type(self)([file.mapped_apart() for file in self.files])
        return made

    def __reduce__(self) -> Any:
        return (_reopened, ([(file.path, file.shown, file.identity) for file in self.files],))

    def beside(self, file: StoredFile) -> OpenFiles:
        """These files, and another one behind them."""
        return OpenFiles([*self.files, file])

    def require_same(self, numbers: Iterable[int] | None = None) -> None:
        """Raises unless all files, or some of them, are as they were when they were opened.

        Raises:
            OffloadError: one was written to or cut. Fields: ``name``.

        Cost: about a microsecond a file.
        """
        for file in self.files if numbers is None else (self.files[number] for number in numbers):
            change = file.change()
            if change is not None:
                raise OffloadError(
                    f"{file.shown} {change}: its weights are not those that were loaded; load the model again (a file that is renamed "
                    "over, or read with copy=True, does no harm)",
                    name=file.shown,
                )

    def view(self, row: StoredTensor) -> torch.Tensor:
        """A tensor of a file: a view of its mapping, which nothing is read of until it is looked at.

        Guarantee: writes to it stay in this process, and the storage holds this tensor and nothing else.
        """
        return tensor_in(self.files[row.file].map(), row.begin, row.dtype, row.shape)

    def is_aligned(self, row: StoredTensor) -> bool:
        """Whether a tensor begins where one of its dtype can be looked at; others are copied."""
        return row.begin % row.dtype.itemsize == 0

    def slow_files(self) -> frozenset[int]:
        """Numbers of the files on network and FUSE file systems, where pages that are mapped come in slowly, and may not come."""
        return frozenset(
            number for number, file in enumerate(self.files) if file.file_system() in ("network", "fuse")
        )


def tensor_in(buffer: Any, begin: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """A tensor over the bytes of a buffer from an offset on; it keeps the buffer alive.

    A tensor that does not begin at a multiple of its element is a copy, because kernels would trap on some machines.
    """
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if begin % dtype.itemsize:
        found = torch.frombuffer(buffer, dtype=torch.uint8, count=count * dtype.itemsize, offset=begin)
        return found.clone().view(dtype).view(shape)
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=begin).view(shape)


def open_headers(files: CheckpointFiles) -> tuple[OpenFiles, Headers]:
    """The files of a checkpoint, opened, and their headers, read from these handles.

    Raises:
        CheckpointError: what keeps a file from being opened, or a header from being trusted. Fields: ``file``, ``reason``.
    """
    opened, headers = files.open_headers()
    return OpenFiles(opened), headers


def _reopened(rows: Sequence[tuple[str, str, tuple[int, int, int, int]]]) -> OpenFiles:
    """What a pickle of open files becomes: opened again by path, and refused if one is another file now."""
    files = []
    for path, shown, identity in rows:
        file = StoredFile.open(path, shown)
        if file.identity != identity:
            raise OffloadError(
                f"{shown} is another file than the one whose weights were pickled: it was replaced or written to; load the model from its "
                "checkpoint instead",
                name=shown,
            )
        files.append(file)
    return OpenFiles(files)
