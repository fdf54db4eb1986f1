"""Element types by name count the same without torch as with it."""

from __future__ import annotations

import pytest
import torch

from planner.errors import InvalidInputError
from planner.model.dtypes import element_bits, formula_bits, stored_bits
from planner.settings.dtypes import read_dtype
from planner.settings.schema import DTYPES


@pytest.mark.parametrize("name", [name for name in DTYPES if hasattr(torch, name)])
def test_a_name_counts_as_its_type(name: str) -> None:
    dtype = getattr(torch, name)
    assert element_bits(name) == element_bits(f"torch.{name}") == (formula_bits(dtype), stored_bits(dtype))


def test_what_torch_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="float17"):
        element_bits("float17")


@pytest.mark.parametrize(
    ("text", "name"),
    [("FP16", "float16"), ("BF16", "bfloat16"), ("Float32", "float32"), ("NF4", "nf4"), ("INT8", "int8")],
)
def test_capitals_are_no_other_type(text: str, name: str) -> None:
    """As the files themselves and people write them, formats and element types alike."""
    assert read_dtype(text) == name
