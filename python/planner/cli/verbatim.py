"""Texts of the command line as they were written, without typer's conversion, which loads pydantic for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from typer.core import TyperGroup

_TEXTS: Final = (str, list[str], bool)


class _AsWritten:
    """Stands where typer has its conversion of a parameter's value."""

    def coerce(self, value: Any, param: Any, **_: Any) -> Any:
        """The value; nothing at all for a repeatable option that was not given."""
        return () if value is None and param.multiple else value


def keep_as_written(parameters: Iterable[Any]) -> None:
    """Lets parameters that are texts, lists of texts or flags be taken as they were written.

    Guarantee: a command sees the same values; typer's conversion of a text to a text changes nothing.

    Cost: saves the import of pydantic, a tenth of a second in the start of every command.
    """
    for parameter in parameters:
        if getattr(getattr(parameter, "type_descriptor", None), "annotation", None) in _TEXTS:
            parameter.get_runtime_param = _AsWritten


class VerbatimGroup(TyperGroup):
    """A group of commands whose own options are taken as they were written."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        keep_as_written(self.get_params(ctx))
        return super().parse_args(ctx, args)
