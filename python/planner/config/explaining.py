"""The words of ``Resolved.explain``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from planner.config.evaluate import Answer
from planner.config.origin import Rank
from planner.config.problem import Path, path_text
from planner.config.schema import MISSING, schema_of

if TYPE_CHECKING:
    from planner.config.resolved import Resolved

__all__ = ["explain"]


def explain(resolved: Resolved[Any], path: Path) -> str:
    """Everything known about a path, and for a block or mapping about each path below."""
    below = [each for each in _paths(resolved) if each[: len(path)] == path]
    return "\n".join(line for each in below for line in _lines(resolved, each))


def _paths(resolved: Resolved[Any]) -> list[Path]:
    silent = [path for path in resolved.past if path not in resolved.answers]
    return [*resolved.answers, *silent]


def _lines(resolved: Resolved[Any], path: Path) -> Iterator[str]:
    answer, past = resolved.answers.get(path), resolved.past.get(path, ())
    if answer is None:
        yield f"{path_text(path)}: nothing counts"
    elif answer.cls is not None:
        yield f"{path_text(path)}: {answer.cls.__name__} at {schema_of(answer.cls).place()}  <- {answer.origin}"
    else:
        said = "" if answer.said is None else f", said as {answer.said!r}"
        yield f"{path_text(path)} = {answer.written!r}  <- {answer.origin}{said}"
    yield from (f"    {each}" for each in past if not isinstance(each.value, dict))
    if answer is not None:
        yield from (f"    {line}" for line in _about(resolved, path, answer))


def _about(resolved: Resolved[Any], path: Path, answer: Answer) -> Iterator[str]:
    field = answer.field
    for read in answer.reads:
        source = resolved.answers[read]
        yield f"reads {path_text(read)} = {source.written!r}  <- {source.origin}"
    if field is not None and answer.shape == "leaf":
        if field.default is not MISSING and answer.origin.rank > Rank.COMPUTED and not field.compute:
            where = schema_of(_class_of(resolved, path)).place(field.name)
            yield f"{field.type.write(field.default)!r}  <- default · {where}  [shadowed]"
        yield "derived: it cannot be set" if field.derived else "settable"
    readers = resolved.readers.get(path, ())
    if readers:
        yield f"read by {', '.join(readers)}"


def _class_of(resolved: Resolved[Any], path: Path) -> type:
    cls = resolved.answers[path[:-1]].cls
    assert cls is not None
    return cls
