"""Formats of quantisers in a plan: what may be asked for, what is said of it, and what else would be smaller."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Final

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
        method = settings.model.quant_method or "another format"
        raise InvalidInputError(
            f"dtype {into.name}: the model is quantised already ({method}) and is loaded as it is; leave dtype out, or name the model "
            "before it was quantised"
        )
    return into


def is_quantised(opened: Opened, settings: Settings) -> bool:
    """Whether a quantiser has written the weights, by what the model says of itself."""
    return opened.is_quantised or settings.model.quant_method is not None


def estimate_note(into: Format) -> str:
    """What a reader should know of sizes in a format that no file is in yet."""
    return (
        f"{ESTIMATED} of {into.name} as {into.quantiser} writes it; what it does not convert stays as it is"
    )


class SmallerFormats:
    """Formats in which a model would be smaller than it is planned, found when they are first asked for.

    Args:
        opened: the model.
        settings: of the plan.
        layout: the model as it is planned.
    """

    def __init__(self, opened: Opened, settings: Settings, layout: Layout) -> None:
        self._opened, self._settings, self._layout = opened, settings, layout

    @cached_property
    def total_bytes(self) -> Mapping[str, int]:
        """Bytes of the model by format, each clearly less than the one before; none where it is quantised already.

        Cost: O(modules + tensors) for each format that is tried.
        """
        found: dict[str, int] = {}
        if is_quantised(self._opened, self._settings):
            return MappingProxyType(found)
        least = self._layout.columns.total_bits / 8
        weights = Weights(self._opened.tree)
        special = self._settings.special_dtypes
        sizes = self._opened.sizes(None, special)
        for name in _OFFERED:
            into = format_named(name)
            converted = {} if into is None else weights.converted(into)
            kept = {name: size for name, size in converted.items() if name not in special}
            layout = Layout(self._opened.tree, special_dtypes=special, sizes={**sizes, **kept})
            total_bytes = -(-layout.columns.total_bits // 8)
            if kept and total_bytes < least * _WORTHWHILE:
                found[name] = least = total_bytes
        return MappingProxyType(found)
