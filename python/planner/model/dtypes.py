"""How large the elements of a dtype are: as stored, and as accelerate's formula has it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from planner.errors import InvalidInputError
from planner.spelling import shown

if TYPE_CHECKING:
    import torch

# accelerate.utils.CustomDtype, by value: what a quantised load will store.
_CUSTOM_BITS = {"fp8": 8, "int4": 4, "int2": 2}
# torch's quantised types whose storage packs several elements into the byte that `itemsize` says.
_PACKED_BITS = {"torch.quint4x2": 4, "torch.quint2x4": 2}
_INTEGRAL = ("torch.uint", "torch.int", "torch.bool")
# Stored bits of torch's types by name, so that plans from files need no torch to count in one.
_NAMED_BITS = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 64),
    **dict.fromkeys(("float32", "int32", "uint32"), 32),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 16),
    **dict.fromkeys(("int8", "uint8", "bool", "float4_e2m1fn_x2"), 8),
    **dict.fromkeys(
        ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), 8
    ),
    "complex128": 128,
}
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
        f"dtype {shown(dtype)} is not a torch dtype; write one as in 'bfloat16' or torch.bfloat16",
        dtype=dtype,
    )


def stored_bits(dtype: Any) -> int:
    """Bits that one element takes in memory; a whole byte for bool and for torch's unpacked sub-byte integers."""
    custom = _custom_bits(dtype)
    return _PACKED_BITS.get(str(dtype), int(dtype.itemsize) * 8) if custom is None else custom


def element_bits(dtype: Any) -> tuple[int, int]:
    """Formula bits and stored bits of an element type, by name or object; torch's well-known names need no torch.

    Raises:
        InvalidInputError: torch has no such dtype.

    Example:
        >>> element_bits("bfloat16"), element_bits("bool")
        ((16, 16), (1, 8))
    """
    name = dtype.removeprefix("torch.") if type(dtype) is str else ""
    if name in _NAMED_BITS:
        stored = _NAMED_BITS[name]
        return _formula_bits(name, stored), stored
    resolved = resolve_dtype(dtype)
    return formula_bits(resolved), stored_bits(resolved)


def formula_bits(dtype: Any) -> int:
    """Bits per element that accelerate plans with.

    Source: ``dtype_byte_size``, accelerate 1.15, utils/modeling.py: the digits that end the dtype's name, in whole
    bytes; a bool is one bit, and names without digits raise there (here: the stored size).
    """
    custom = _custom_bits(dtype)
    if custom is not None:
        return custom
    return _formula_bits(str(dtype).removeprefix("torch."), stored_bits(dtype))


def _formula_bits(name: str, stored: int) -> int:
    if name == "bool":
        return 1
    if name in _FLOAT8:
        return 8
    digits = _TRAILING_DIGITS.search(name)
    return int(digits.group(1)) // 8 * 8 if digits else stored


def describe_dtype(dtype: torch.dtype) -> tuple[int, int, bool]:
    """Formula bits, stored bits, and whether a load with another dtype casts it (integers and booleans stay)."""
    return formula_bits(dtype), stored_bits(dtype), not str(dtype).startswith(_INTEGRAL)


def _custom_bits(dtype: Any) -> int | None:
    value = getattr(dtype, "value", None)
    return _CUSTOM_BITS.get(value) if isinstance(value, str) else None
