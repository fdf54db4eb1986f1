"""What files hold in another form than it has in memory, written once to a file that holds it as it is used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

import torch

from planner.loading.converted_folder import Bytes, ConvertedFolder
from planner.loading.fingerprint import fingerprint
from planner.loading.open_files import OpenFiles
from planner.loading.stored import TORCH_DTYPES, StoredTensor
from planner.loading.weights import FileWeights, WantedTensor, files_of, is_in_place, made

__all__ = ["Converted"]

_TYPES: Final[Mapping[torch.dtype, str]] = {dtype: kind for kind, dtype in TORCH_DTYPES.items()}
# The first tensor begins on a page.
_PAGE_BYTES: Final = 4096


class Converted:
    """Tensors that are not in the files as they are used, and a file that is to have them so.

    Args:
        files: the files of a checkpoint.
        wanted: these tensors.
        offload_folder: where that file is written to, in a folder of its own for each set of tensors.
    """

    def __init__(self, files: OpenFiles, wanted: Sequence[WantedTensor], offload_folder: str) -> None:
        self._files = files
        self._wanted = sorted(wanted, key=lambda row: -row.dtype.itemsize)
        self._folder = ConvertedFolder(offload_folder, fingerprint(files, self._wanted))
        rows = _laid_out(self._wanted, file=len(files.files))
        self._header = _header(rows)
        begin = len(self._header)
        self._rows = [row._replace(begin=row.begin + begin, end=row.end + begin) for row in rows]

    @classmethod
    def of(cls, weights: FileWeights, offload_folder: str) -> Converted | None:
        """What offloaded weights need written; None if all are in the files as they are used."""
        wanted = {row.name: row for row in weights.wanted.values() if _is_converted(weights.files, row)}
        return cls(weights.files, list(wanted.values()), offload_folder) if wanted else None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(row.nbytes for row in self._wanted)

    @property
    def written_bytes(self) -> int:
        """What was written; 0 if it was there already."""
        return self._folder.written_bytes

    def store(self, advance: Callable[[int], None]) -> tuple[OpenFiles, dict[str, WantedTensor]]:
        """Writes the tensors, unless that was done before.

        Args:
            advance: is told of bytes that were written.

        Returns:
            The checkpoint's files with the one that was written, and the tensors as they lie there, by name.

        Raises:
            InvalidInputError: the folder is a file.
            OffloadError: it cannot be written to, or has no room; a number that the wanted dtype cannot hold; files that were
                changed. Fields: ``name``.

        Guarantee: one tensor is in memory at a time. When it raises, the folder is as it was.

        Cost: reading and writing these tensors once; afterwards, a header.
        """
        file = self._folder.finished_or_written(self._rows[-1].end, self._parts(advance))
        if not self.written_bytes:
            advance(self.nbytes)
        pairs = zip(self._wanted, self._rows, strict=True)
        return self._files.beside(file), {row.name: wanted._replace(recipe=row) for wanted, row in pairs}

    def discard(self) -> None:
        """Leaves the folder as it was before."""
        self._folder.discard()

    def _parts(self, advance: Callable[[int], None]) -> Iterator[Bytes]:
        """The bytes of the file, each tensor made when it is written."""
        used = sorted({number for row in self._wanted for number in files_of(row.recipe)})
        self._files.require_same(used)
        yield lambda: memoryview(self._header)
        for row in self._wanted:
            yield partial(_bytes_of, self._files, row)
            advance(row.nbytes)
        # What changed while it was read is not what the fingerprint says.
        self._files.require_same(used)


def _is_converted(files: OpenFiles, wanted: WantedTensor) -> bool:
    """Whether a tensor has to be made each time that it is used."""
    return wanted.dtype in _TYPES and not is_in_place(files, wanted)


def _laid_out(wanted: Sequence[WantedTensor], file: int) -> list[StoredTensor]:
    """Where tensors lie behind the header: one after the other, all aligned, because those of large elements come first."""
    rows: list[StoredTensor] = []
    end = 0
    for row in wanted:
        begin, end = end, end + row.nbytes
        rows.append(StoredTensor(row.name, file, begin, end, row.dtype, tuple(row.recipe.shape)))
    return rows


def _header(rows: Sequence[StoredTensor]) -> bytes:
    """The header of a safetensors file, which ends at the end of a page."""
    said: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for row in rows:
        shape = list(row.shape)
        if row.dtype == torch.float4_e2m1fn_x2:
            shape[-1] *= 2  # torch counts pairs
        said[row.name] = {
            "dtype": _TYPES[row.dtype],
            "shape": shape,
            "data_offsets": [row.begin, row.end],
        }
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _PAGE_BYTES)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(files: OpenFiles, wanted: WantedTensor) -> memoryview:
    tensor = made(files, wanted).detach().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().data
