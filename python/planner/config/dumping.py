"""The plain data of ``Resolved.dump``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from planner.config.evaluate import Answer
from planner.config.layer import UNSET
from planner.config.origin import Rank
from planner.config.problem import Path

if TYPE_CHECKING:
    from planner.config.resolved import Resolved

__all__ = ["dump"]


def dump(resolved: Resolved[Any], part: Path, ranks: frozenset[Rank], everything: bool) -> dict[str, object]:
    """The words of the given ranks below a block, as nested plain data."""
    top = resolved.answers.get(part)
    if top is None or top.cls is None:
        raise TypeError("only a block that is on can be dumped: a value means nothing without its field")
    below = {
        path: answer for path, answer in resolved.answers.items() if _within(part, path) and path != part
    }
    chosen: dict[Path, object] = {path: answer.written for path, answer in below.items()}
    if not everything:
        said = {path for path, answer in below.items() if _is_said(answer, part, path, ranks)}
        said |= _wholes(resolved, below, said, ranks)
        said |= _tags(resolved, part, said)
        chosen = {path: value for path, value in chosen.items() if path in said}
        chosen |= {path: UNSET for path in _deleted(resolved, ranks) if not part and path not in chosen}
    return _nested(part, chosen)


def _within(part: Path, path: Path) -> bool:
    return path[: len(part)] == part


def _is_said(answer: Answer, part: Path, path: Path, ranks: frozenset[Rank]) -> bool:
    derived = answer.field is not None and answer.field.derived
    by_word = answer.origin.rank in ranks and (answer.shape == "leaf" or answer.opened)
    # Without its parent, a part would compute or default these otherwise.
    from_outside = any(not _within(part, read) for read in answer.reads) or (bool(part) and answer.stray)
    return not derived and (by_word or from_outside)


def _wholes(
    resolved: Resolved[Any], below: dict[Path, Answer], said: set[Path], ranks: frozenset[Rank]
) -> set[Path]:
    """A mapping that means something only as a whole is dumped whole, as soon as one word of it is."""
    ended = [
        path
        for path, past in resolved.past.items()
        if any(each.by and each.by.rank in ranks for each in past)
    ]
    found: set[Path] = set()
    for path, answer in below.items():
        computed = path in said and bool(answer.reads)
        touched = answer.whole and any(_within(path, each) for each in (*said, *ended))
        if answer.shape == "map" and (computed or touched):
            found |= {each for each in below if _within(path, each)}
    return found


def _tags(resolved: Resolved[Any], part: Path, said: set[Path]) -> set[Path]:
    """The type of a block is dumped with any of its keys: the default type may be another one where it is read."""
    parents = {path[:size] for path in said for size in range(len(part), len(path))} | (
        {part} if part else set()
    )
    return {(*path, "type") for path in parents if resolved.answers[path].tag is not None}


def _deleted(resolved: Resolved[Any], ranks: frozenset[Rank]) -> Iterator[Path]:
    """What the import said, the user ended, and nobody said again: it would come back on top of the same import."""
    for path, past in resolved.past.items():
        ended = any(
            each.origin.rank is Rank.IMPORTED and each.by and each.by.rank is Rank.USER for each in past
        )
        answer, parent = resolved.answers.get(path), resolved.answers.get(path[:-1])
        silent = (
            answer.origin.rank <= Rank.COMPUTED if answer else parent is not None and parent.shape == "map"
        )
        if ended and silent and Rank.USER in ranks and Rank.IMPORTED not in ranks:
            yield path


def _nested(part: Path, chosen: dict[Path, object]) -> dict[str, object]:
    result: dict[str, object] = {}
    for path, value in sorted(chosen.items(), key=lambda pair: pair[1] is UNSET):
        keys, into = path[len(part) :], result
        for key in keys[:-1]:
            inner = into.setdefault(cast(str, key), {})
            if not isinstance(inner, dict):
                break  # switched off or deleted as a whole
            into = inner
        else:
            into.setdefault(cast(str, keys[-1]), {} if value == {} else value)
    return result
