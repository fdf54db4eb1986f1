"""Where the values of an offloaded tensor rest, for those who find its placeholder after the hooks are gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from planner.errors import OffloadError

__all__ = ["RestingPlace"]


class RestingPlace(NamedTuple):
    """Where the values of an offloaded tensor rest.

    Args:
        source: a mapping that gives them.
        key: their key in it.
    """

    source: Mapping[str, Any]
    key: str

    @property
    def is_in_file(self) -> bool:
        """Whether they are read from a file when they are asked for, or were put in the place of such; others may be anybody's."""
        asked = getattr(self.source, "is_in_file", None)
        return asked is not None and bool(asked(self.key))

    def value(self, name: str) -> Any:
        """The values.

        Args:
            name: what an error calls the tensor.

        Raises:
            OffloadError: the source does not have them. Fields: ``name``.
        """
        try:
            return self.source[self.key]
        except (KeyError, OSError) as error:
            raise OffloadError(f"offloaded weight '{name}' cannot be read: {error!r}", name=name) from error
