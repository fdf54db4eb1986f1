"""One step in numbers, as costs are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from planner.model.work import Experts

__all__ = ["HOST", "LineSizes"]

HOST: Final = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineSizes:
    """One step, in numbers.

    Args:
        tokens: new tokens, over all sequences.
        dtype: what the model computes in.
        item_bytes: one number of that.
        activation_bytes: what passes from one piece to the next.
        heads_per_key: heads that read one head of the cache.
        experts: of a mixture.
        longest_tokens: new tokens of the longest step that a plan is to be ready for.
        fetches_all: whether the host runs nothing that longer steps could not bring in, but what computes nothing.
    """

    tokens: int
    dtype: str
    item_bytes: int
    activation_bytes: int
    heads_per_key: int = 1
    experts: Experts | None = None
    longest_tokens: int = 0
    fetches_all: bool = False
