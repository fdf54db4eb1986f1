"""Pickled tensors whose elements do not lie in order, such as transposed ones, put in order before anything else reads them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Final

import torch

from planner.checkpoint.files import StoredFile
from planner.checkpoint.reading import fault, system_reason
from planner.errors import OffloadError
from planner.loading.open_files import tensor_in
from planner.loading.stored import StoredTensor
from planner.units import format_bytes

__all__ = ["put_in_order"]

# Each begins where any dtype can be looked at.
_STEP_BYTES: Final = 64


def put_in_order(
    name: str, files: list[StoredFile], strides: Mapping[StoredTensor, tuple[int, ...]]
) -> dict[StoredTensor, StoredTensor]:
    """Writes tensors to a temporary file that has no name any more, in which their elements lie in order.

    Args:
        name: what messages call the checkpoint.
        files: its files; the new one is put behind them.
        strides: the tensors, with their strides in elements.

    Returns:
        By tensor, where it lies now.

    Raises:
        CheckpointError: they are larger together than the files, so that a small file would write much. Fields: ``file``, ``reason``.
        OffloadError: there is no room for the file. Fields: ``name``.

    Cost: writing these tensors once; nothing, without any.
    """
    if not strides:
        return {}
    sizes = [row.dtype.itemsize * torch.Size(row.shape).numel() for row in strides]
    most_bytes = sum(file.size_bytes for file in files)
    if sum(sizes) > most_bytes:
        raise fault(
            name,
            f"its tensors whose elements do not lie in order have {sum(sizes)} bytes together, and its files {most_bytes}",
        )
    found: dict[StoredTensor, StoredTensor] = {}
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = os.path.join(folder, "in_order")
            with open(path, "wb") as out:
                for (row, steps), size_bytes in zip(strides.items(), sizes, strict=True):
                    begin = out.seek(-(-out.tell() // _STEP_BYTES) * _STEP_BYTES)
                    extent = row.nbytes // row.dtype.itemsize
                    flat = tensor_in(files[row.file].map(), row.begin, row.dtype, (extent,))
                    ordered = flat.as_strided(row.shape, steps).contiguous()
                    out.write(ordered.view(-1).view(torch.uint8).numpy().data)
                    found[row] = row._replace(file=len(files), begin=begin, end=begin + size_bytes)
            files.append(StoredFile.open(path, name))
    except OSError as error:
        raise OffloadError(
            f"{name} has {format_bytes(sum(sizes))} of tensors whose elements do not lie in order, and the folder for temporary files "
            f"cannot take them: {system_reason(error)}",
            name=name,
        ) from error
    return found
