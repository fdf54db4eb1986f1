"""What one source said: an immutable tree of words, before any schema is applied."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from planner.config.problem import Origin, Path, Place, Problem, Rank, Spoken

__all__ = [
    "MAX_DEPTH",
    "UNSET",
    "Layer",
    "Node",
    "Replace",
    "SourceError",
    "Unset",
    "along",
    "from_python",
    "layer_of",
    "put",
]

MAX_DEPTH = 64


class Unset(enum.Enum):
    """The type of ``UNSET``; an enum so that it stays one object through copies and pickles."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset.UNSET
"""As a value: forget what lower layers say here."""


@dataclass(frozen=True, slots=True)
class Replace:
    """As a value: forget what lower layers say here, then say this."""

    content: object


class SourceError(Exception):
    """A source cannot be understood at all; becomes one ``Problem`` of its layer."""


@dataclass(frozen=True, slots=True)
class Node:
    """One word of one source.

    Args:
        origin: where it was said.
        content: a dict of nodes by key, a tuple of nodes (a list), ``UNSET``, or a scalar.
        replace: whether it first forgets what lower layers say.
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
    def speaks(self) -> bool:
        """Whether it says anything; a path that leads only to an unset does not."""
        if self.partial and isinstance(self.content, dict):
            return any(child.speaks for child in self.content.values())
        return self.content is not UNSET

    def plain(self) -> object:
        """The content without origins, for messages."""
        if isinstance(self.content, dict):
            return {key: child.plain() for key, child in self.content.items()}
        if isinstance(self.content, tuple):
            return [item.plain() for item in self.content]
        return self.content if self.text is None else self.text

    def spoken(self, path: Path) -> Spoken:
        """This word as a line below a problem."""
        return Spoken(path, self.plain(), self.origin)


@dataclass(frozen=True, slots=True)
class Layer:
    """Everything that one source said, and what was wrong with the source itself."""

    rank: Rank
    place: Place
    root: Node
    problems: tuple[Problem, ...] = ()


def layer_of(
    place: Place, origin: Origin, read: Callable[[], tuple[Node | None, Iterable[Problem]]]
) -> Layer:
    """What a source says; if it cannot be understood at all, that is a problem of its layer."""
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
    """Adds what one source says at a key to a tree of the same source that is still being made.

    Returns:
        The paths said twice, as problems: order within a source never decides.
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
        yield Problem(here, "said twice in one source", (old.spoken(here), new.spoken(here)))


def from_python(value: object, origin: Origin, *, text_keys: bool = False) -> tuple[Node, list[Problem]]:
    """A tree from nested Python values, and what was said twice; tuples as keys are paths, strings are never split.

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
        for key, said in value.items():
            path = key if isinstance(key, tuple) and key else (key,)
            child = node(said, depth + len(path))
            problems.extend(put(made, path[0], along(path[1:], child)))
        return made

    return node(value, 0), problems
