"""JSON as events: checked by the standard library, with the line and column of every value beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from planner.config.compose import MAX_NODES, Event
from planner.config.layer import MAX_DEPTH, SourceError

__all__ = ["json_events"]

# A string without an end runs to the end of the text, so that hostile text is scanned only once.
_TOKEN = re.compile(r'[{}\[\]]|"[^"\\]*+(?:\\(?:.|\Z)[^"\\]*+)*+(?:"|\Z)|[^\s{}\[\],:"]++', re.DOTALL)


def json_events(text: str) -> Iterator[Event]:
    """The events of one JSON document.

    Raises:
        SourceError: not JSON, or nested more than 64 deep.
    """
    tokens = list(_tokens(text))
    try:
        json.loads(text)
    except ValueError as error:
        raise SourceError(f"not JSON: {error}") from error
    kinds = {"{": "map", "[": "list", "}": "end", "]": "end"}
    for token, line, column in tokens:
        if token in kinds:
            yield Event(kinds[token], None, line, column)  # type: ignore[arg-type]
        else:
            yield Event("scalar", json.loads(token), line, column)


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    depth, line, line_start, seen = 0, 1, 0, 0
    for number, match in enumerate(_TOKEN.finditer(text)):
        token, start = match.group(), match.start()
        depth += (token in "{[") - (token in "}]")
        newlines = text.count("\n", seen, start)
        if newlines:
            line, line_start = line + newlines, text.rfind("\n", seen, start) + 1
        if depth > MAX_DEPTH:
            raise SourceError(f"line {line}: nested more than {MAX_DEPTH} deep")
        if number > 4 * MAX_NODES:  # a value has a key and at most two brackets
            raise SourceError(f"line {line}: more than {MAX_NODES} values")
        seen = start
        yield token, line, start - line_start + 1
