"""Dotted names in the order of a tree."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["preorder"]


def preorder(names: Iterable[str]) -> list[str]:
    """All names and the modules around them, parents before children, siblings in the order in which they are met.

    Example:
        >>> preorder(["a.b", "c", "a.d"])
        ['', 'a', 'a.b', 'a.d', 'c']
    """
    inside: dict[str, list[str]] = {"": []}
    for name in names:
        missing = []
        while name not in inside:
            missing.append(name)
            name = name.rpartition(".")[0]
        for below in reversed(missing):
            inside[below] = []
            inside[below.rpartition(".")[0]].append(below)
    ordered, pending = [], [""]
    while pending:
        name = pending.pop()
        ordered.append(name)
        pending.extend(reversed(inside[name]))
    return ordered
