"""A tree of words from a stream of events, with one set of limits for every file format."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from planner.config.layer import MAX_DEPTH, Node, SourceError
from planner.config.origin import Origin

__all__ = ["MAX_NODES", "Event", "compose"]

# A tree costs some hundred bytes per value, so the size of a file alone does not bound the memory.
MAX_NODES: Final = 20_000


class Event(NamedTuple):
    """One step through a document: a scalar, the start of a mapping or a list, or the end of either."""

    kind: Literal["scalar", "map", "list", "end"]
    value: object
    line: int
    column: int
    replace: bool = False


@dataclass(slots=True)
class _Composer:
    events: Iterator[Event]
    origin_at: Callable[[Event], Origin]
    text_keys: bool
    count: int = 0

    def node(self, event: Event, depth: int) -> Node:
        self.count += 1
        if depth > MAX_DEPTH:
            raise SourceError(f"line {event.line}: nested more than {MAX_DEPTH} deep")
        if self.count > MAX_NODES:
            raise SourceError(f"line {event.line}: more than {MAX_NODES} values")
        origin = self.origin_at(event)
        if event.kind == "scalar":
            return Node(origin, event.value)
        if event.kind == "list":
            return Node(origin, tuple(self.node(item, depth + 1) for item in _until_end(self.events)))
        return Node(origin, self.children(depth + 1), replace=event.replace, text_keys=self.text_keys)

    def children(self, depth: int) -> dict[object, Node]:
        found: dict[object, Node] = {}
        lines: dict[object, int] = {}
        for key in _until_end(self.events):
            if key.kind != "scalar" or not isinstance(key.value, Hashable):
                raise SourceError(f"line {key.line}: a key must be a plain value")
            if key.value in lines:
                raise SourceError(
                    f"duplicate key {key.value!r} in lines {lines[key.value]} and {key.line}"[:300]
                )
            lines[key.value] = key.line
            found[key.value] = self.node(next(self.events), depth)
        return found


def _until_end(events: Iterator[Event]) -> Iterator[Event]:
    for event in events:
        if event.kind == "end":
            return
        yield event


def compose(
    events: Iterator[Event], origin_at: Callable[[Event], Origin], *, text_keys: bool = False
) -> Node | None:
    """The tree of one document, or None if it is empty.

    Raises:
        SourceError: a limit is exceeded (64 deep, 20 000 values: checked as the events come, so that nothing is
            built beyond them), or a key stands twice in one mapping.
    """
    first = next(events, None)
    if first is None:
        return None
    node = _Composer(events, origin_at, text_keys).node(first, 0)
    next(events, None)  # to the end, where the parser may still complain
    return node
