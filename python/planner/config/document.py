"""A YAML or JSON document as a tree of values, with the line and column of every value, within fixed limits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final, Literal, NamedTuple, TypeVar

from planner.config.layer import MAX_DEPTH, UNSET, UPDATE, Node, SourceError
from planner.config.problem import Origin

T = TypeVar("T")

# A tree costs some hundred bytes per value, so the size of a file alone does not bound the memory.
MAX_NODES: Final = 20_000

_MOST_SLOW: Final = 2**12  # characters for the parser in Python

_CONSTANTS: Final[dict[str, object]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
# Python refuses to convert more than 4300 digits; so long a number stays text and fails as such.
_NUMBERS: Final[tuple[tuple[re.Pattern[str], Callable[[str], object]], ...]] = (
    (re.compile(r"[-+]?[0-9]{1,4000}"), int),
    (re.compile(r"0o[0-7]{1,4000}|0x[0-9a-fA-F]{1,4000}"), lambda text: int(text, 0)),
    (re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"), float),
)
_JSON_TOKEN = re.compile(r'[{}\[\]]|"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\s{}\[\],:"]++', re.DOTALL)


def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for ``object_pairs_hook`` of Python's reader. Raises ValueError: a key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


class Event(NamedTuple):
    """One step through a document: a scalar, the start of a mapping or a list, or the end of either."""

    kind: Literal["scalar", "map", "list", "end"]
    value: object = None
    line: int = 0
    column: int = 0
    tag: str | None = None


_END: Final = Event("end")


def core_scalar(text: str) -> object:
    """The value of an unquoted scalar: ``1e-3`` is a float, ``on`` a string, ``012`` is 12.

    Source:
        YAML 1.2.2, section 10.3.2, tag resolution of the core schema.

    Example:
        >>> [core_scalar(text) for text in ("1e-3", "on", "012", "0x10", "~", "10GiB")]
        [0.001, 'on', 12, 16, None, '10GiB']
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    for pattern, make in _NUMBERS:
        if pattern.fullmatch(text):
            return make(text)
    return text


def parsed(parse: Callable[[str], T], text: str, language: str) -> T:
    """What a parser of the standard library makes of a text. Raises SourceError."""
    try:
        return parse(text)
    except RecursionError as error:
        raise SourceError(f"nested more than {MAX_DEPTH} deep") from error
    except ValueError as error:
        raise SourceError(f"not {language}: {error}") from error


def json_events(text: str) -> Iterator[Event]:
    """The events of one JSON document, which the standard library has checked. Raises SourceError."""
    parsed(json.loads, text, "JSON")
    line, line_start, seen = 1, 0, 0
    for match in _JSON_TOKEN.finditer(text):
        token, start = match.group(), match.start()
        newlines = text.count("\n", seen, start)
        if newlines:
            line, line_start = line + newlines, text.rfind("\n", seen, start) + 1
        seen = start
        if token in "}]":
            yield _END
        elif token in "{[":
            yield Event("map" if token == "{" else "list", None, line, start - line_start + 1)
        else:
            yield Event("scalar", json.loads(token), line, start - line_start + 1)


def yaml_events(text: str) -> Iterator[Event]:
    """The events of one YAML document, in a plain subset of YAML 1.2.

    Args:
        text: the document. ``!unset`` stands for a deletion; before a mapping, ``!replace`` replaces and ``!update`` updates
            what lower layers set.

    Raises:
        SourceError: not YAML, or an anchor, alias, merge key, other tag or second document, which are left out
            because the place of a value would then not be known.
    """
    import yaml  # here, so that importing planner.config stays light

    # Half of a character, as in a file's name that is no text: only the parser in Python lets it through, slowly.
    has_halves = len(text) <= _MOST_SLOW and re.search(r"\\u[dD][89a-fA-F]", text)
    loader = yaml.SafeLoader if has_halves else getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    documents = 0
    try:
        events: Iterator[Any] = yaml.parse(text, Loader=loader)
        for event in events:
            documents += isinstance(event, yaml.DocumentStartEvent)
            if documents > 1:
                raise SourceError(f"line {event.start_mark.line + 1}: a second document")
            if isinstance(event, yaml.NodeEvent):
                yield _opening(event, yaml)
            elif isinstance(event, yaml.CollectionEndEvent):
                yield _END
    except (yaml.YAMLError, UnicodeError) as error:
        # libyaml reads ahead, and its newer versions have a limit of their own, which is above ours.
        if "maximum nesting depth" in str(error):
            raise SourceError(f"nested more than {MAX_DEPTH} deep") from error
        raise SourceError(f"not YAML: {' '.join(str(error).split())}"[:300]) from error


def _opening(event: Any, yaml: Any) -> Event:
    line, column = event.start_mark.line + 1, event.start_mark.column + 1
    if event.anchor is not None:
        raise SourceError(f"line {line}: anchors and aliases are not supported")
    if event.tag not in (None, "!replace", "!unset", "!update"):
        raise SourceError(f"line {line}: tag {event.tag[:50]!r} is not supported")
    if isinstance(event, yaml.SequenceStartEvent):
        return Event("list", None, line, column)
    if isinstance(event, yaml.MappingStartEvent):
        return Event("map", None, line, column, event.tag)
    if event.value == "<<" and event.implicit[0]:
        raise SourceError(f"line {line}: merge keys are not supported")
    plain = core_scalar(event.value) if event.implicit[0] else _joined(event.value)
    return Event("scalar", UNSET if event.tag == "!unset" else plain, line, column)


def _joined(text: str) -> str:
    """Two escaped halves of one character as the character, as JSON means them."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def compose(
    events: Iterator[Event], origin_at: Callable[[Event], Origin], *, text_keys: bool = False
) -> Node | None:
    """The tree of one document, or None if it is empty.

    Raises:
        SourceError: a limit is exceeded (64 deep, 20 000 values: checked as the events come, so that nothing is
            built beyond them), or a key stands twice in one mapping.
    """
    count = 0

    def node(event: Event, depth: int) -> Node:
        nonlocal count
        count += 1
        if depth > MAX_DEPTH:
            raise SourceError(f"line {event.line}: nested more than {MAX_DEPTH} deep")
        if count > MAX_NODES:
            raise SourceError(f"line {event.line}: more than {MAX_NODES} values")
        origin = origin_at(event)
        if event.kind == "scalar":
            return Node(origin, event.value)
        inside = iter(events.__next__, _END)
        if event.kind == "list":
            return Node(origin, tuple(node(item, depth + 1) for item in inside))
        replaces, updates = event.tag == "!replace", event.tag == UPDATE
        return Node(origin, children(inside, depth + 1), replaces, partial=updates, text_keys=text_keys)

    def children(keys: Iterator[Event], depth: int) -> dict[object, Node]:
        found: dict[object, Node] = {}
        lines: dict[object, int] = {}
        for key in keys:
            if key.kind != "scalar" or not isinstance(key.value, Hashable):
                raise SourceError(f"line {key.line}: a key must be a plain value")
            if key.value in lines:
                both = f"{lines[key.value]} and {key.line}"
                raise SourceError(f"duplicate key {key.value!r} in lines {both}"[:300])
            lines[key.value] = key.line
            found[key.value] = node(next(events), depth)
        return found

    trees = [
        node(event, 0) for event in events
    ]  # at most one; to the end, where the parser may still complain
    return trees[0] if trees else None
