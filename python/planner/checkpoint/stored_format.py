"""How a model's weights are stored, in the word that people use for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

_WORDS: Final = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F4": "fp4",
    "F6_E2M3": "fp6",
    "F6_E3M2": "fp6",
    "BOOL": "bool",
    **{
        f"{letter}{bits}": f"{word}int{bits}"
        for letter, word in (("I", ""), ("U", "u"))
        for bits in (8, 16, 32, 64)
    },
}
"""What torch calls the element types of safetensors files; of those smaller than a byte, what people do."""

_EIGHT_BITS: Final = ("F8_", "float8_")
_BIT_KEYS: Final = ("bits", "num_bits", "nbits", "w_bit", "weight_bits")
_SAID_BITS: Final = re.compile(r"(?i)(?:int|float|fp|nf)([1-8])(?![0-9])")
# Methods whose name is the format.
_FORMATS: Final = {"fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "mxfp4", "eetq": "int8"}


def stored_format(
    bytes_by_dtype: Iterable[tuple[str, int]], quantization: Mapping[str, Any], dtype: object = None
) -> str:
    """A word or two for how weights are stored, or will be once they are loaded as ``dtype``.

    Args:
        bytes_by_dtype: stored bytes of each element type, as torch or safetensors name it.
        quantization: the model's ``quantization_config``; empty without one.
        dtype: what floating-point weights will be loaded as; what a quantiser has packed stays as it is.

    Example:
        >>> stored_format([("BF16", 200), ("F32", 8)], {})
        'bfloat16'
        >>> stored_format([("torch.float32", 8)], {}, "bfloat16")
        'bfloat16'
        >>> stored_format([("I32", 200), ("F16", 50)], {"quant_method": "gptq", "bits": 4})
        'gptq 4-bit'
    """
    if quantization:
        return _quantised(quantization)
    stored: dict[str, int] = {}
    for name, size_bytes in bytes_by_dtype:
        word = dtype_word(name)
        stored[word] = stored.get(word, 0) + size_bytes
    most = max(stored, key=lambda word: stored[word], default="")
    is_cast = dtype is not None and not most.startswith(("int", "uint", "bool"))
    return dtype_word(dtype) if is_cast else most


def packed_bits(quantization: Mapping[str, Any]) -> int | None:
    """Bits that a quantiser packs an element of a weight into; None where its configuration does not tell.

    Example:
        >>> packed_bits({"quant_method": "gptq", "bits": 4}), packed_bits({"quant_method": "mxfp4"}), packed_bits({"quant_method": "new"})
        (4, 4, None)
    """
    parts = _weights_of(quantization)
    bits = next((parts[key] for key in _BIT_KEYS if type(parts.get(key)) is int and parts[key] > 0), None)
    if bits is not None:
        return int(bits)
    said = quantization.get("quant_type")  # of torchao, the name of a class for each sort of module
    named = (_quantised(quantization), json.dumps(said, default=str) if isinstance(said, Mapping) else "")
    found = [int(each) for name in named for each in _SAID_BITS.findall(name)]
    return min(found, default=None)


def dtype_word(dtype: object) -> str:
    """An element type as people write it.

    Example:
        >>> dtype_word("torch.float8_e4m3fn"), dtype_word("BF16")
        ('fp8', 'bfloat16')
    """
    name = str(getattr(dtype, "value", dtype)).removeprefix("torch.")
    return "fp8" if name.startswith(_EIGHT_BITS) else _WORDS.get(name, name)


def _quantised(config: Mapping[str, Any]) -> str:
    """What a quantiser made of the weights, by its method and its bits."""
    method = str(getattr(config.get("quant_method"), "value", config.get("quant_method")) or "quantised")
    if "bnb" in method or "bitsandbytes" in method or "load_in_4bit" in config:
        # Before quant_method was written, bitsandbytes was the only one.
        return str(config.get("bnb_4bit_quant_type") or "fp4") if config.get("load_in_4bit") else "int8"
    if method in _FORMATS:
        return _FORMATS[method]
    parts = _weights_of(config)
    bits = next((parts[key] for key in _BIT_KEYS if type(parts.get(key)) is int), None)
    if bits == 8 and parts.get("type") == "float":
        return "fp8"
    named = next((parts[key] for key in ("weights", "quant_type") if isinstance(parts.get(key), str)), None)
    words = f" {bits}-bit" if bits else f" {named}" if named else ""
    return f"{method.replace('_', '-')}{words}"


def _weights_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that says of weights how many bits they have."""
    if any(key in config for key in _BIT_KEYS):
        return config
    for key in ("config_groups", "quant_config"):
        groups = config.get(key)
        for group in groups.values() if isinstance(groups, Mapping) else ():
            found = group.get("weights", group) if isinstance(group, Mapping) else None
            if isinstance(found, Mapping):
                return found
    return config
