"""How large the elements of a dtype are: as stored, and as accelerate's formula has it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from planner.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

__all__ = ["describe_dtype", "formula_bits", "resolve_dtype", "stored_bits"]

# accelerate.utils.CustomDtype, by value: what a quantised load will store.
_CUSTOM_BITS = {"fp8": 8, "int4": 4, "int2": 2}
# torch's quantised types whose storage packs several elements into the byte that `itemsize` says.
_PACKED_BITS = {"torch.quint4x2": 4, "torch.quint2x4": 2}
_INTEGRAL = ("torch.uint", "torch.int", "torch.bool")
_TRAILING_DIGITS = re.compile(r"[^\d](\d+)$")
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")


def resolve_dtype(dtype: Any) -> Any:
    """The dtype object meant by a name, an object, or accelerate's ``CustomDtype``.

    Raises:
        InvalidInputError: torch has no such dtype.
    """
    import torch

    if isinstance(dtype, str) and not hasattr(dtype, "value"):
        found = getattr(torch, dtype.replace("torch.", ""), None)
        if isinstance(found, torch.dtype):
            return found
    elif isinstance(dtype, torch.dtype) or _custom_bits(dtype) is not None:
        return dtype
    raise InvalidInputError(
        f"dtype {dtype!r} is not a torch dtype; write one as in 'bfloat16' or torch.bfloat16", dtype=dtype
    )


def stored_bits(dtype: Any) -> int:
    """Bits that one element takes in memory; a whole byte for bool and for torch's unpacked sub-byte integers."""
    custom = _custom_bits(dtype)
    return _PACKED_BITS.get(str(dtype), int(dtype.itemsize) * 8) if custom is None else custom


def formula_bits(dtype: Any) -> int:
    """Bits per element that accelerate plans with.

    Source: ``dtype_byte_size``, accelerate 1.15, utils/modeling.py: the digits that end the dtype's name, in whole
    bytes; a bool is one bit, and names without digits raise there (here: the stored size).
    """
    custom = _custom_bits(dtype)
    if custom is not None:
        return custom
    name = str(dtype)
    if name == "torch.bool":
        return 1
    if name.removeprefix("torch.") in _FLOAT8:
        return 8
    digits = _TRAILING_DIGITS.search(name)
    return int(digits.group(1)) // 8 * 8 if digits else stored_bits(dtype)


def describe_dtype(dtype: torch.dtype) -> tuple[int, int, bool]:
    """Formula bits, stored bits, and whether a load with another dtype casts it (integers and booleans stay)."""
    return formula_bits(dtype), stored_bits(dtype), not str(dtype).startswith(_INTEGRAL)


def _custom_bits(dtype: Any) -> int | None:
    value = getattr(dtype, "value", None)
    return _CUSTOM_BITS.get(value) if isinstance(value, str) else None
