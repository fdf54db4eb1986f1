"""Formats of quantisers in a plan: what may be asked for, what is said of it, and what else would be smaller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Final

from planner.checkpoint.source import Opened
from planner.errors import InvalidInputError
from planner.model.formats import Format, format_named
from planner.model.in_format import Weights
from planner.model.layout import Layout
from planner.plans.parts import ESTIMATED
from planner.settings.schema import Settings

_OFFERED: Final = ("fp8", "int8", "nf4", "mxfp4")
_WORTHWHILE: Final = 0.9  # of the bytes that there are now; what saves less is no way out


def asked_format(opened: Opened, settings: Settings) -> Format | None:
    """The format that a model is to be planned in.

    Raises:
        InvalidInputError: the model is quantised already, so that no quantiser takes it.
    """
    into = None if settings.dtype is None else format_named(settings.dtype)
    if into is not None and is_quantised(opened, settings):
        raise InvalidInputError(
            f"dtype {into.name}: the model is quantised already ({opened.format()}) and is loaded as it is; leave dtype out, or name "
            "the model before it was quantised"
        )
    return into


def is_quantised(opened: Opened, settings: Settings) -> bool:
    """Whether a quantiser has written the weights, by what the model says of itself."""
    return bool(opened.quantization) or settings.model.quant_method is not None


def estimate_note(into: Format) -> str:
    """What a reader should know of sizes in a format that no file is in yet."""
    return (
        f"{ESTIMATED} of {into.name} as {into.quantiser} writes it; what it does not convert stays as it is"
    )


class SmallerFormats(Mapping[str, int]):
    """Bytes of a model by format in which it would be clearly smaller, each less than the one before; nothing where it is quantised
    already. Found when it is first read, which most callers never do.

    Args:
        opened: the model.
        settings: of the plan.
        layout: the model as it is planned.

    Guarantee: immutable; pickled and copied as a dict.

    Cost: O(modules + tensors) for each format that is tried, once.
    """

    def __init__(self, opened: Opened, settings: Settings, layout: Layout) -> None:
        self._opened, self._settings, self._layout = opened, settings, layout

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
        if is_quantised(self._opened, self._settings):
            return found
        least = self._layout.columns.total_bits / 8
        special = self._settings.special_dtypes
        wide = Layout(
            self._opened.tree,
            special_dtypes=special,
            sizes=self._opened.sizes(dtype=None, special_dtypes=special),
        )
        own_bytes = wide.stored_sizes()
        weights = Weights(self._opened.tree)
        for name in _OFFERED:
            into = format_named(name)
            converted = {} if into is None else weights.converted(into)
            saved_bits = sum(
                int(own_bytes[weight] * 8) - bits
                for weight, bits in converted.items()
                if weight not in special
            )
            total_bytes = -(-(wide.columns.total_bits - saved_bits) // 8)
            if total_bytes < least * _WORTHWHILE:
                found[name] = least = total_bytes
        return found
