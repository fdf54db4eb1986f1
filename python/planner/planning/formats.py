"""Formats of quantisers in a plan: what may be asked for, what is said of it, and what else would be smaller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from planner.checkpoint.source import Opened
from planner.errors import InvalidInputError
from planner.model.formats import format_named
from planner.model.in_format import Weights, layout_as
from planner.model.layout import Layout
from planner.plans.parts import ESTIMATED

_OFFERED: Final = ("fp8", "int8", "nf4", "mxfp4")
_WORTHWHILE: Final = 0.9  # of the bytes that there are now; what saves less is no way out


def loaded_as(
    opened: Opened,
    dtype: str | None,
    *,
    special_dtypes: Mapping[str, str] | None = None,
    no_split: Iterable[str] = (),
    containers: Iterable[str] = (),
) -> tuple[Layout, Opened]:
    """A model as it will be loaded, and what to know of its sizes then.

    Args:
        opened: the model.
        dtype: an element type or a quantiser's format, as :func:`planner.settings.dtypes.read_dtype` spells it; None for what it is.
        special_dtypes: element types of single tensors, by name.
        no_split, containers: as of :class:`planner.model.layout.Layout`.

    Returns:
        The layout; and the model with a note more, where its sizes are an estimate.

    Raises:
        InvalidInputError: the model is quantised already, or the format converts nothing of it.
    """
    into = None if dtype is None else format_named(dtype)
    if into is not None and opened.quantization:
        raise InvalidInputError(
            f"dtype {into.name}: the model is quantised already ({opened.format()}) and is loaded as it is; leave dtype out, or name "
            "the model before it was quantised"
        )
    special = dict(special_dtypes or {})
    sizes = opened.sizes(None if into else dtype, special)
    layout = layout_as(
        opened.tree,
        dtype,
        sizes=sizes,
        special_dtypes=special,
        tied=opened.tied,
        no_split=no_split,
        containers=containers,
    )
    if into is None:
        return layout, opened
    note = (
        f"{ESTIMATED} of {into.name} as {into.quantiser} writes it; what it does not convert stays as it is"
    )
    return layout, replace(opened, notes=(*opened.notes, note))


class SmallerFormats(Mapping[str, int]):
    """Bytes of a model by format in which it would be clearly smaller, each less than the one before; nothing where it is quantised
    already. Found when it is first read, which most callers never do.

    Args:
        opened: the model.
        special_dtypes: element types of single tensors, by name.
        layout: the model as it is planned.

    Guarantee: immutable; pickled and copied as a dict.

    Cost: O(modules + tensors) for each format that is tried, once.
    """

    def __init__(self, opened: Opened, special_dtypes: Mapping[str, str], layout: Layout) -> None:
        self._opened, self._special, self._layout = opened, special_dtypes, layout

    def __getitem__(self, name: str) -> int:
        return self._total_bytes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._total_bytes)

    def __len__(self) -> int:
        return len(self._total_bytes)

    def __repr__(self) -> str:
        return repr(self._total_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return (dict, (self._total_bytes,))

    @cached_property
    def _total_bytes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        if self._opened.quantization:
            return found
        least = self._layout.columns.total_bits / 8
        special = self._special
        wide = Layout(
            self._opened.tree,
            special_dtypes=special,
            sizes=self._opened.sizes(dtype=None, special_dtypes=special),
            tied=self._opened.tied,
        )
        own_bytes = wide.stored_sizes()
        weights = Weights(self._opened.tree)
        for name in _OFFERED:
            into = format_named(name)
            converted = {} if into is None else weights.converted(into)
            if all(weight in special for weight in converted):
                continue  # a plan in this format is refused, however wide the model is now
            saved_bits = sum(
                int(own_bytes[weight] * 8) - bits
                for weight, bits in converted.items()
                if weight not in special
            )
            total_bytes = -(-(wide.columns.total_bits - saved_bits) // 8)
            if total_bytes < least * _WORTHWHILE:
                found[name] = least = total_bytes
        return found
