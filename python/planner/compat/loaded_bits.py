"""How large the tensors of a model of transformers will be once it is loaded, asked while all of it is on meta."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from planner.errors import InvalidInputError, InvalidTreeError
from planner.spelling import shown

if TYPE_CHECKING:
    import torch

__all__ = ["loaded_bits", "quantized_bits"]

_MOST_ELEMENT_BYTES = 1024  # the largest element type of torch has 16


def loaded_bits(model: Any, hf_quantizer: Any) -> dict[str, int]:
    """Bits of the tensors that a load makes larger or smaller than they are on meta, by name.

    Args:
        model: a ``PreTrainedModel``.
        hf_quantizer: its ``param_element_size`` gives the bytes of each element; None where nothing is quantised.

    Raises:
        InvalidTreeError, InvalidInputError: as :func:`quantized_bits`.

    Source: ``convert_and_load_state_dict_in_model`` of transformers 5.23, core_model_loading.py: a saved tensor whose name its
        ``_get_dtype_plan`` matches is loaded in that dtype, any other in its own.
    """
    planned: Mapping[str, torch.dtype] = model._get_dtype_plan(model.dtype)
    if hf_quantizer is None and not planned:
        return {}
    own = {name: _own_bits(tensor) for name, tensor in _tensors(model)}
    quantized = {} if hf_quantizer is None else quantized_bits(model, hf_quantizer)
    found = {name: bits for name, bits in quantized.items() if bits != own[name]}
    saved = model.state_dict(keep_vars=True) if planned else {}
    for name, dtype in _planned_dtypes(planned, saved).items():
        bits = saved[name].numel() * dtype.itemsize * 8
        if name not in found and own.get(name, bits) != bits:
            found[name] = bits
    return found


def quantized_bits(model: Any, hf_quantizer: Any) -> dict[str, int]:
    """Bits of each tensor as a quantizer will store it, rounded up.

    Raises:
        InvalidTreeError: the quantizer's answer is negative, not finite, or more than can be planned. Fields: ``name``.
        InvalidInputError: no quantizer.
    """
    if not hasattr(hf_quantizer, "param_element_size"):
        raise InvalidInputError(f"hf_quantizer must tell param_element_size; got {shown(hf_quantizer)}")
    bits = {}
    for name, tensor in _tensors(model):
        element_bytes = hf_quantizer.param_element_size(model, name, tensor)
        if not 0 <= element_bytes <= _MOST_ELEMENT_BYTES:
            raise InvalidTreeError(
                f"the quantizer says that an element of '{name}' takes {element_bytes} bytes; it must be a number from 0 "
                f"to {_MOST_ELEMENT_BYTES}",
                name=name,
            )
        bits[name] = math.ceil(tensor.numel() * element_bytes * 8)
    return bits


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _own_bits(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size() * 8


def _planned_dtypes(planned: Mapping[str, torch.dtype], saved: Iterable[str]) -> dict[str, torch.dtype]:
    """Dtypes of the tensors that a class keeps wide, by its own patterns."""
    dtypes = {f"g{number}": dtype for number, dtype in enumerate(planned.values())}
    globs = (f"(?P<{group}>{each.replace('*', '.*')})" for group, each in zip(dtypes, planned, strict=True))
    pattern = re.compile("|".join(globs))
    matches = ((name, pattern.search(name)) for name in saved)
    return {name: dtypes[match.lastgroup] for name, match in matches if match and match.lastgroup}
