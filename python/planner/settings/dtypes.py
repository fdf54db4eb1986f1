"""What weights can be loaded as, by name: torch's element types, and the formats of quantisers."""

from __future__ import annotations

import re
from typing import Final

from planner.config.problem import suggestion
from planner.spelling import shown

FLOATS: Final = ("float64", "float32", "float16", "bfloat16")
"""Of these, what models compute in."""

DTYPES: Final = (
    *FLOATS,
    *(
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float4_e2m1fn_x2",
    ),
    *(
        "int64",
        "int32",
        "int16",
        "int8",
        "uint64",
        "uint32",
        "uint16",
        "uint8",
        "bool",
        "complex64",
        "complex128",
    ),
)
"""torch's names of element types; listed here because reading a configuration must not need torch."""

FORMATS: Final = (
    *("int8", "int4", "nf4", "nf4-double-quant", "fp4", "fp8", "mxfp4"),
    *("gptq-4bit-g128", "awq-4bit-g128"),
)
"""Formats of quantisers; of GPTQ and AWQ one each, for they have others with other numbers."""

GROUPED_FORMAT: Final = re.compile(
    r"(?:gptq-(?P<bits>[2348])|awq-4)bit-g(?P<group>16|32|64|128|256|512|1024)"
)
"""Formats with bits and elements that share a scale in the name. Source: ``GPTQConfig`` and ``AwqConfig`` of transformers 5.23;
``SUPPORTS_BITS`` and ``SUPPORTS_GROUP_SIZE`` of gptqmodel 7.7, nn_modules/qlinear/."""

_SHORT_DTYPES: Final = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def is_format(name: str) -> bool:
    """Whether this is the name of a quantiser's format, as :func:`read_dtype` spells it.

    Example:
        >>> is_format("int8"), is_format("gptq-3bit-g64"), is_format("bfloat16")
        (True, True, False)
    """
    return name in FORMATS or GROUPED_FORMAT.fullmatch(name) is not None


def read_element_type(value: object) -> str:
    """torch's name of an element type, from the name, with or without ``torch.``, or from the object itself.

    Raises:
        ValueError: no such type.

    Example:
        >>> read_element_type("torch.bfloat16"), read_element_type("FP16")
        ('bfloat16', 'float16')
    """
    name = _name(value)
    if name not in DTYPES:
        raise ValueError(
            f"expected an element type such as 'float16', got {shown(value)}{suggestion(name, DTYPES)}"
        )
    return name


def read_cache_dtype(value: object) -> str:
    """torch's name of an element type that keys and values can have: a floating-point one.

    Raises:
        ValueError: no such type.

    Example:
        >>> read_cache_dtype("torch.float8_e4m3fn"), read_cache_dtype("BF16")
        ('float8_e4m3fn', 'bfloat16')
    """
    name = read_element_type(value)
    if not name.startswith(("float", "bfloat")):
        raise ValueError(
            f"expected a floating-point type such as 'bfloat16' or 'float8_e4m3fn', for keys and values have no other, got {shown(value)}"
        )
    return name


def read_dtype(value: object) -> str:
    """What a whole model is loaded as: a quantiser's format, or an element type.

    ``int8`` is the format, however it is written, as a name or as ``torch.int8``: no loader makes all weights of a model
    bare integers.

    Raises:
        ValueError: neither.

    Example:
        >>> read_dtype("torch.bfloat16"), read_dtype("NF4"), read_dtype("gptq-3bit-g64")
        ('bfloat16', 'nf4', 'gptq-3bit-g64')
    """
    name = _name(value)
    if name in DTYPES:
        return name
    if is_format(name.lower()):
        return name.lower()
    raise ValueError(
        "expected an element type such as 'float16' or a format such as 'nf4' or 'gptq-4bit-g128', "
        f"got {shown(value)}{suggestion(name, (*DTYPES, *FORMATS))}"
    )


def _name(value: object) -> str:
    """The name of a type in full; empty for what is neither a name nor a type."""
    is_torch = (type(value).__module__, type(value).__qualname__) == ("torch", "dtype")
    name = str(value).removeprefix("torch.") if is_torch or type(value) is str else ""
    plain = _SHORT_DTYPES.get(name.lower(), name.lower())
    return plain if plain in DTYPES else name
