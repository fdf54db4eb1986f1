"""Names that regular expressions of a class match."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["matching"]


def matching(names: Mapping[str, Sequence[str]], patterns: Iterable[str]) -> dict[str, None]:
    """Names whose goals all match one of the patterns."""
    parts = [f"(?:{pattern})" for pattern in sorted(patterns)]
    if not parts or not names:
        return {}
    search = re.compile("|".join(parts)).search
    return {name: None for name, goals in names.items() if all(map(search, goals))}
