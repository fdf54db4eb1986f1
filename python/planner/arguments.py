"""What callers hand in, judged before anything is done with it: names, paths, and mappings by name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from planner.errors import InvalidInputError
from planner.names import is_text
from planner.spelling import count_of, shown


def require_text(name: Any, what: str) -> None:
    """Raises InvalidInputError unless something is a string that can be a name."""
    if not is_text(name):
        raise InvalidInputError(f"{what} must be a name, not {shown(name)}")


def name_list(names: Any, what: str) -> list[str]:
    """Several names, in their order.

    Raises:
        InvalidInputError: anything else; one name alone, too, whose letters would be meant.

    Example:
        >>> name_list(("b", "a"), "names")
        ['b', 'a']
    """
    listed = _listed(names, what, "names")
    for name in listed:
        require_text(name, f"each of {what}")
    return listed


def name_groups(groups: Any, what: str) -> list[list[str]]:
    """Several groups of names. Raises InvalidInputError for anything else."""
    return [name_list(group, f"a group of {what}") for group in _listed(groups, what, "groups of names")]


def named_parts(parts: Any, what: str) -> list[tuple[str, Any]]:
    """Pairs of a name and a module or tensor. Raises InvalidInputError for anything else."""
    listed = _listed(parts, what, "pairs of a name and a module")
    for part in listed:
        if not (isinstance(part, tuple | list) and len(part) == 2 and is_text(part[0])):
            raise InvalidInputError(f"{what} must hold pairs of a name and a module, not {shown(part)}")
    return [(name, module) for name, module in listed]


def _listed(values: Any, what: str, kinds: str) -> list[Any]:
    is_several = isinstance(values, Iterable) and not isinstance(values, str | bytes | type)
    if not is_several:
        raise InvalidInputError(f"{what} must hold {kinds}, not {shown(values)}")
    try:
        return list(values)
    except TypeError:  # a tensor without dimensions
        raise InvalidInputError(f"{what} must hold {kinds}, not {shown(values)}") from None


def require_weights(rows: Any, what: str = "weights_map") -> None:
    """Raises InvalidInputError unless something has values by key and tells its keys, as mappings do."""
    if isinstance(rows, type) or not (hasattr(rows, "keys") and hasattr(rows, "__getitem__")):
        raise InvalidInputError(f"{what} must map names to weights; got {shown(rows)}")


def require_sizes(sizes: Any) -> None:
    """Raises InvalidInputError unless something is a mapping, such as :func:`planner.compute_module_sizes` gives."""
    if not isinstance(sizes, Mapping):
        raise InvalidInputError(f"module_sizes must map names to bytes; got {shown(sizes)}")


def size_named(sizes: Any, name: str) -> int | float:
    """The size of a name, 0 where a mapping has none. Raises InvalidInputError for what is no size."""
    size = sizes.get(name, 0)
    if type(size) is int or type(size) is float:
        return size
    if count_of(size) is None:
        raise InvalidInputError(f"the size of {shown(name)} must be a number of bytes, not {shown(size)}")
    return size  # type: ignore[no-any-return]  # such as one of numpy


def path_text(path: Any, what: str) -> str:
    """A path as text.

    Raises:
        InvalidInputError: no path, or one that no file can have.

    Example:
        >>> path_text("weights", "offload_folder")
        'weights'
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text or not _is_encodable(text):
        raise InvalidInputError(f"{what} must be a path, not {shown(path)}")
    return text


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeError:
        return False
    return True
