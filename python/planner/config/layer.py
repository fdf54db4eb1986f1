"""What one source sets: an immutable tree of values, before any schema is applied."""

from __future__ import annotations

import enum
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from planner.config.problem import Origin, Path, Problem, Rank, SourcedValue, UserSource

T = typing.TypeVar("T")

MAX_DEPTH = 64


class Unset(enum.StrEnum):
    """The type of ``UNSET``; an enum so that it stays one object through copies and pickles."""

    UNSET = "!unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset.UNSET
"""As a value: forget what lower layers set here. In plain data it is the text "!unset"."""

UPDATE = "!update"
"""As a key with the value true: the mapping updates by key, even where a mapping means something only as a whole."""


def is_unset(content: object) -> bool:
    """Whether a value is ``UNSET``, or the text that stands for it in plain data."""
    return isinstance(content, str) and content == UNSET.value


def escaped(value: object, marker: str) -> object:
    """What a text is in plain data: one more exclamation mark where it could be taken for a marker of ours.

    Example:
        >>> [escaped(value, UPDATE) for value in ("!update", "!!update", "update", 1)]
        ['!!update', '!!!update', 'update', 1]
    """
    return f"!{value}" if _looks_like(value, marker, "!") else value


def unescaped(value: T, marker: str) -> T:
    """The text that was meant. Undoes :func:`escaped`."""
    return (
        typing.cast("T", value[1:]) if isinstance(value, str) and _looks_like(value, marker, "!!") else value
    )


def _looks_like(value: object, marker: str, start: str) -> bool:
    return isinstance(value, str) and value.startswith(start) and value.lstrip("!") == marker[1:]


@dataclass(frozen=True, slots=True)
class Replace:
    """As a value: forget what lower layers set here, then set this."""

    content: object


class SourceError(Exception):
    """A source cannot be understood at all; becomes one ``Problem`` of its layer."""


@dataclass(frozen=True, slots=True)
class Node:
    """One value of one source.

    Args:
        origin: where it was set.
        content: a dict of nodes by key, a tuple of nodes (a list), ``UNSET``, or a scalar.
        replace: whether it first forgets what lower layers set.
        partial: a mapping that exists only because a dotted path leads through it.
        text: the raw text, where the source has only text; its type is decided by the field.
        text_keys: whether the keys below are text for want of anything else (JSON, TOML).
    """

    origin: Origin
    content: object
    replace: bool = False
    partial: bool = False
    text: str | None = None
    text_keys: bool = False

    @property
    def sets_any(self) -> bool:
        """Whether it sets anything; a path that leads only to an unset does not."""
        if self.partial and isinstance(self.content, dict):
            return not self.content or any(child.sets_any for child in self.content.values())
        return not is_unset(self.content)

    def decoded(self) -> Node:
        """This node, with what plain data spells as text or as a key: a text that looks like a marker, an update."""
        if isinstance(self.content, dict) and UPDATE in self.content and self.content[UPDATE].content is True:
            rest = {key: node for key, node in self.content.items() if key != UPDATE}
            return replace(self, content=rest, partial=True)
        text = unescaped(self.content, UNSET.value)
        return self if text is self.content else replace(self, content=text, text=self.text and str(text))

    def plain(self) -> object:
        """The content without origins, for messages."""
        if isinstance(self.content, dict):
            return {key: child.plain() for key, child in self.content.items()}
        if isinstance(self.content, tuple):
            return [item.plain() for item in self.content]
        return self.content if self.text is None else self.text

    def sourced(self, path: Path) -> SourcedValue:
        """This value with its origin, as a line below a problem."""
        return SourcedValue(path, self.plain(), self.origin)


@dataclass(frozen=True, slots=True)
class Layer:
    """Everything that one source sets, and what was wrong with the source itself."""

    rank: Rank
    place: UserSource
    root: Node
    problems: tuple[Problem, ...] = ()


def layer_of(
    place: UserSource, origin: Origin, read: Callable[[], tuple[Node | None, Iterable[Problem]]]
) -> Layer:
    """The layer of a source; if it cannot be understood at all, that is a problem of its layer."""
    try:
        root, problems = read()
    except SourceError as error:
        root, problems = None, [Problem((), f"{origin.where}: {error}")]
    return Layer(origin.rank, place, root or Node(origin, {}), tuple(problems))


def along(path: Path, node: Node) -> Node:
    """The node, wrapped in the partial mappings that its path leads through."""
    for key in reversed(path):
        node = Node(node.origin, {key: node}, partial=True)
    return node


def put(into: Node, key: object, new: Node, above: Path = ()) -> Iterator[Problem]:
    """Adds what one source sets at a key to a tree of the same source that is still being made.

    Returns:
        The paths set twice, as problems: order within a source never decides.
    """
    assert isinstance(into.content, dict)
    old, here = into.content.get(key), (*above, key)
    if old is None:
        into.content[key] = new
    elif isinstance(old.content, dict) and isinstance(new.content, dict):
        for each, child in new.content.items():
            yield from put(old, each, child, here)
        flags = {"partial": old.partial and new.partial, "replace": old.replace or new.replace}
        into.content[key] = replace(old, **flags)
    else:
        yield Problem(here, "said twice in one source", (old.sourced(here), new.sourced(here)))


def from_python(value: object, origin: Origin, *, text_keys: bool = False) -> tuple[Node, list[Problem]]:
    """A tree from nested Python values, and what was set twice; tuples as keys are paths, strings are never split.

    Raises:
        SourceError: nested more than 64 deep, which includes a mapping that holds itself.
    """
    problems: list[Problem] = []

    def node(value: object, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise SourceError(f"nested more than {MAX_DEPTH} deep")
        if isinstance(value, Replace):
            return replace(node(value.content, depth), replace=True)
        if isinstance(value, (list, tuple)):
            return Node(origin, tuple(node(item, depth + 1) for item in value))
        if not isinstance(value, Mapping):
            return Node(origin, value)
        made = Node(origin, {}, text_keys=text_keys)
        for key, inner in value.items():
            path = key if isinstance(key, tuple) and key else (key,)
            child = node(inner, depth + len(path))
            problems.extend(put(made, path[0], along(path[1:], child)))
        return made

    return node(value, 0), problems
