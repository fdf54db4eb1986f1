"""Names of modules and tensors said with ``*``, ``?`` and ``[…]``, as ``fnmatch`` reads them: dots are characters like others."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence

from planner.errors import InvalidConstraintError
from planner.known_names import KnownNames
from planner.model.layout import Layout
from planner.names import is_within

__all__ = ["matched_names", "require_names", "unknown_names"]

_MOST_CANDIDATES = 2000  # names that a misspelt one is compared with


def matched_names(layout: Layout, what: str, patterns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What each name or glob means in a model.

    Args:
        layout: the model.
        what: the setting that they are from, for the message.
        patterns: names, and globs. What the model has under that very name is a name.

    Returns:
        By name, itself; by glob, the outermost modules and tensors that it matches, in the model's order: what a match holds goes
        with it.

    Raises:
        InvalidConstraintError: a name or glob for which there is nothing. Fields: ``names``, ``suggestions``.

    Cost: one look-up a name; all names of the model are made only where there is a glob, or a name is unknown.
    """
    tree = layout.tree.columns
    known = dict(zip(patterns, tree.knows(list(patterns)), strict=True)) if patterns else {}
    if all(known.values()):
        return {name: (name,) for name in known}
    names = tree.names()
    found = {
        pattern: (pattern,) if is_known else _outermost(pattern, names) for pattern, is_known in known.items()
    }
    unknown = [pattern for pattern, matches in found.items() if not matches]
    if unknown:
        raise _unknown_in(layout, what, unknown, names)
    return found


def require_names(layout: Layout, what: str, names: Sequence[str]) -> None:
    """Refuses names that the model does not have, and globs, which are no names.

    Args:
        layout: the model.
        what: the setting that they are from, for the message.
        names: paths of modules or tensors.

    Raises:
        InvalidConstraintError: unknown names. Fields: ``names``, ``suggestions`` (the nearest ones that the model has).

    Cost: one look-up a name; all names of the model are made only where one is unknown.
    """
    if not names:
        return
    known = layout.tree.columns.knows(list(names))
    unknown = [name for name, is_known in zip(names, known, strict=True) if not is_known]
    if unknown:
        raise _unknown_in(layout, what, unknown, layout.tree.columns.names())


def _unknown_in(
    layout: Layout, what: str, unknown: list[str], known: Sequence[str]
) -> InvalidConstraintError:
    """The error about modules and tensors that a model does not have."""
    names = KnownNames.of(layout.tree.columns.name_kinds())
    return unknown_names(f"{what} names nothing in the model:", unknown, known, names)


def unknown_names(
    message: str, unknown: list[str], known: Sequence[str], names: KnownNames | None = None
) -> InvalidConstraintError:
    """The error about names that are not there, with the nearest ones that are: of modules and tensors, what `explain` says."""
    nearest = [
        match
        for name in unknown[:5]
        for match in (
            _nearest(name, known) if names is None or _is_glob(name) else names.nearest(name, most=1)
        )
    ]
    hint = f"; did you mean {', '.join(map(repr, nearest))}?" if nearest else ""
    return InvalidConstraintError(
        f"{message} {', '.join(map(repr, unknown))}{hint}", names=tuple(unknown), suggestions=tuple(nearest)
    )


def _is_glob(name: str) -> bool:
    return any(character in name for character in "*?[")


def _outermost(pattern: str, names: Iterable[str]) -> tuple[str, ...]:
    """Of names in preorder, those that a glob matches and that lie in no other match."""
    if not _is_glob(pattern):
        return ()
    matches = re.compile(fnmatch.translate(pattern)).match
    found: list[str] = []
    for name in names:
        if matches(name) and not (found and is_within(name, found[-1])):
            found.append(name)
    return tuple(found)


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """What was meant by an unknown name; by a glob, the glob with parts that the model has, else names like it."""
    if not _is_glob(name):
        return difflib.get_close_matches(name, known[:_MOST_CANDIDATES], n=1, cutoff=0.5)
    parts = list(dict.fromkeys(part for each in known[:_MOST_CANDIDATES] for part in each.split(".")))
    mended = ".".join(
        part
        if _is_glob(part) or part in parts
        else next(iter(difflib.get_close_matches(part, parts, n=1)), part)
        for part in name.split(".")
    )
    if mended != name and _outermost(mended, known):
        return [mended]
    plain = re.sub(r"\[[^]]*\]|[*?]", "", name)
    return difflib.get_close_matches(plain, known[:_MOST_CANDIDATES], n=1, cutoff=0.5)
