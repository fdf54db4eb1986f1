"""accelerate's functions on sizes: of modules and tensors, of one element, and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from planner.compat.module_lists import class_names, get_max_layer_size
from planner.devices.keys import size_to_bytes
from planner.model.dtypes import resolve_dtype, stored_bits
from planner.model.layout import Layout
from planner.model.tree import ModuleTree

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "calculate_maximum_sizes",
    "compute_module_sizes",
    "compute_module_total_buffer_size",
    "convert_file_size_to_int",
    "dtype_byte_size",
]


def compute_module_sizes(
    model: nn.Module,
    dtype: str | torch.dtype | None = None,
    special_dtypes: Mapping[str, str | torch.dtype] | None = None,
    buffers_only: bool = False,
) -> dict[str, int | float]:
    """Stored bytes of every module and tensor by name; "" is the whole model.

    Args:
        model: the model.
        dtype: what the weights will be loaded as, larger or smaller.
        special_dtypes: the same for single tensors, by name.
        buffers_only: leave out parameters.

    Returns:
        Bytes; a tensor with several names counts under the first. accelerate counts a bool as an eighth of a byte, some
        dtypes as nothing, and never an upcast; here all count as stored. Names that are not there count 0.

    Source: accelerate 1.15, utils/modeling.py.
    """
    layout = Layout(ModuleTree.from_module(model), dtype=dtype, special_dtypes=special_dtypes)
    sizes: dict[str, int | float] = _Sizes(layout.stored_sizes("buffers" if buffers_only else "all"))
    return sizes


class _Sizes(dict[str, "int | float"]):
    """accelerate returns a defaultdict; unlike one, this does not grow when asked."""

    def __missing__(self, name: str) -> int:
        return 0


def compute_module_total_buffer_size(
    model: nn.Module,
    dtype: str | torch.dtype | None = None,
    special_dtypes: Mapping[str, str | torch.dtype] | None = None,
) -> int | float:
    """Stored bytes of all buffers in a model. Source: accelerate 1.15, utils/modeling.py."""
    return compute_module_sizes(model, dtype, special_dtypes, buffers_only=True)[""]


def calculate_maximum_sizes(model: nn.Module) -> tuple[int | float, tuple[float, list[str]]]:
    """Stored bytes of a model, and of its largest layer with the names of all layers of that size.

    Source: accelerate 1.15, utils/modeling.py; the no-split classes are the model's own ``_no_split_modules``.
    """
    sizes = compute_module_sizes(model)
    members = [
        *model.named_parameters(recurse=False),
        *model.named_children(),
        *model.named_buffers(recurse=False),
    ]
    no_split = class_names(getattr(model, "_no_split_modules", None))
    return sizes[""], get_max_layer_size(members, sizes, no_split)


def convert_file_size_to_int(size: int | str) -> int:
    """Bytes meant by a size in words.

    Raises:
        InvalidByteSizeError: negative, or no size. Fields: ``text``.

    Guarantee: a lower-case b after a decimal prefix ("10Gb") means bits, as in accelerate, and is warned about.

    Source: accelerate 1.15, utils/modeling.py; blanks, plain digits, TB, TiB, PB and PiB are accepted, too.

    Example:
        >>> convert_file_size_to_int("1MiB")
        1048576
    """
    return size_to_bytes(size)


def dtype_byte_size(dtype: torch.dtype) -> int | float:
    """Bytes that one element of a dtype takes in memory; accelerate calls a bool an eighth and int4 nothing.

    Example:
        >>> import torch
        >>> dtype_byte_size(torch.float32), dtype_byte_size(torch.bool)
        (4, 1)
    """
    bits = stored_bits(resolve_dtype(dtype))
    return bits / 8 if bits % 8 else bits // 8
