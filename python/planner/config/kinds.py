"""What a field may hold: the exact reading of a word as one value, and the trees that have paths below."""

from __future__ import annotations

import contextlib
import enum
import pathlib
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from planner.config.document import core_scalar
from planner.config.layer import Node, is_unset
from planner.config.problem import Path, short, suggestion

if typing.TYPE_CHECKING:
    from planner.config.schema import Field

__all__ = ["Blocks", "Keyed", "Leaf", "Type", "is_block", "parse_type", "split_path"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A type that is read as one value. Annotate with it to register: ``Annotated[int, Leaf("bytes", …)]``.

    Args:
        name: for messages: ``expected {name}``.
        read: from what was said to the value; raises ValueError or TypeError with a reason.
        write: from the value to plain data that ``read`` takes back; None for the value itself.
        is_list: whether it reads a tuple of words instead of a scalar.
    """

    name: str
    read: Callable[[typing.Any], object]
    write: Callable[[typing.Any], object] | None = None
    is_list: bool = False

    def take(self, content: object) -> object:
        """The value meant by the content of a node. Raises ValueError."""
        if isinstance(content, dict) or isinstance(content, tuple) != self.is_list:
            raise ValueError(f"expected {self.name}, got {_got(content)}")
        try:
            return self.read(content)
        except (TypeError, ArithmeticError) as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Keyed:
    """A Mapping: updated key by key, or, if ``whole``, replaced by each mapping that is said."""

    key: Type
    value: Type
    whole: bool = False

    def child(self, key: object, *, is_text: bool, chosen: type | None) -> tuple[object, Type, None]:
        """The canonical spelling of a key, and what stands there. Raises ValueError."""
        if is_text and isinstance(key, str):
            with contextlib.suppress(ValueError):  # then it is a word, or fails as one below
                return self.key.take(core_scalar(key)), self.value, None
        try:
            return self.key.take(key), self.value, None
        except ValueError as error:
            raise ValueError(f"the key does not fit: {error}") from error


@dataclass(frozen=True, slots=True)
class Blocks:
    """One nested class, or several of which a tag (the key ``type``) picks one.

    Args:
        members: the classes by tag; a class without a tag stands under None.
        first: the class that is meant as long as nobody says a type.
    """

    members: Mapping[str | None, type]
    first: type

    @property
    def classes(self) -> Collection[type]:
        return self.members.values()

    @property
    def tags(self) -> tuple[str, ...]:
        """The values that ``type`` may have; empty if the class is always the same."""
        return tuple(tag for tag in self.members if tag is not None)

    def child(self, key: object, *, is_text: bool, chosen: type | None) -> tuple[object, Type, Field | None]:
        """The present name of a field, and its declaration. Raises ValueError.

        Args:
            chosen: the class; before anybody chose one, a key of any of the classes will do.
        """
        if self.tags and key == "type":
            return key, TAG, None
        current = chosen or self.first
        for cls in [chosen] if chosen else [current, *self.classes]:
            field = vars(cls)["__config__"].names.get(key)
            if field is not None:
                return field.name, field.type, field
        known = [*vars(current)["__config__"].fields, *(["type"] if self.tags else [])]
        raise ValueError(f"unknown key in {current.__name__}{suggestion(key, known)}")


@dataclass(frozen=True, slots=True)
class Type:
    """A field's type: what it may be as one value, and the one tree (block or mapping) it may be."""

    members: tuple[Leaf, ...]
    tree: Blocks | Keyed | None = None

    def __str__(self) -> str:
        tree = "a mapping" if isinstance(self.tree, Keyed) else self.tree and self.tree.first.__name__
        return " or ".join([*([tree] if tree else []), *(member.name for member in self.members)])

    def read(self, node: Node) -> object:
        """The value of a word. Raises ValueError with the reason of every member that refused it."""
        try:
            return self.take(node.content)
        except ValueError:
            if node.text is None:
                raise
        return self.take(node.text)

    def take(self, content: object) -> object:
        """The value of the first member that takes the content. Raises ValueError."""
        reasons = []
        for member in self.members:
            try:
                return member.take(content)
            except ValueError as error:
                reasons.append(str(error))
        if self.tree is not None:
            reasons.insert(0, f"expected {self}, got {_got(content)}")
        raise ValueError("; ".join(reasons))

    def write(self, value: object) -> object:
        """Plain data (None, bool, int, float, str, list) that reads back as the value; empty for a tree."""
        if self.tree is not None and (isinstance(value, Mapping) or is_block(type(value))):
            return {}
        for member in self.members:
            if member.is_list == isinstance(value, tuple) and (member.is_list or _takes(member, value)):
                return member.write(value) if member.write else value
        raise TypeError(f"{short(value)} is not {self}")

    def with_type(self, node: Node) -> Node:
        """``{type: word}`` for a plain word where a tag picks the class, unless a member takes such a word."""
        if not (isinstance(node.content, str) and isinstance(self.tree, Blocks) and self.tree.tags):
            return node
        if is_unset(node.content):
            return node
        if any(_takes(member, node.content) for member in self.members):
            return node
        return Node(node.origin, {"type": node}, partial=True)


def split_path(kind: Type, text: str) -> tuple[Path, Type | None]:
    """The keys of a dotted path, and the type found there; under a mapping of leaves all that is left is one key.

    Example:
        >>> from planner.config.settings import SETTINGS
        >>> split_path(SETTINGS, "special_dtypes.model.layers.0.weight")[0]
        ('special_dtypes', 'model.layers.0.weight')
    """
    path: list[object] = []
    found, dot = typing.cast("Type | None", kind), "."
    while dot:
        tree = found.tree if found else None
        is_last = tree is None or (isinstance(tree, Keyed) and tree.value.tree is None)
        word, dot, text = (text, "", "") if is_last else text.partition(".")
        key: object = word
        found = None
        if tree is not None:
            with contextlib.suppress(ValueError):  # resolve reports it, with its origin
                key, found, _ = tree.child(word, is_text=True, chosen=None)
        path.append(key)
    return tuple(path), found


def is_block(cls: type) -> bool:
    """Whether ``@config`` was applied to this very class (not only to a parent)."""
    return "__config__" in vars(cls)


def _takes(leaf: Leaf, value: object) -> bool:
    try:
        return leaf.take(value) == value or value != value
    except ValueError:
        return False


def _got(content: object) -> str:
    if isinstance(content, dict):
        return "a mapping"
    if isinstance(content, tuple):
        return "a list"
    if is_block(type(content)):
        return f"an instance of {type(content).__name__}, which would say all its defaults; pass a mapping"
    return "null" if content is None else f"{type(content).__name__} {short(content)}"


def _exact(name: str, *kinds: type, make: Callable[[typing.Any], object] | None = None) -> Leaf:
    """Reads values of exactly these types, and makes something of them."""

    def read(value: object) -> object:
        if type(value) not in kinds:
            raise ValueError(f"expected {name}, got {_got(value)}")
        return make(value) if make else value

    return Leaf(name, read, str if make is pathlib.Path else None)


TAG = Type((_exact("a type", str),))
"""What ``type`` holds; which tags there are is checked where it is said."""

_PLAIN: Mapping[object, Leaf] = {
    bool: _exact("a bool", bool),
    int: _exact("an int", int),
    str: _exact("a str", str),
    type(None): _exact("null", type(None)),
    float: _exact("a float", float, int, make=float),
    pathlib.Path: _exact("a path", str, type(pathlib.Path()), make=pathlib.Path),
}


def _choice(choices: Mapping[typing.Any, object]) -> Leaf:
    """Reads one of several words, by spelling."""
    if not all(type(spelling) is str for spelling in choices):
        raise TypeError(f"{list(choices)}: only choices spelled as strings can be said in every source")
    name = f"one of {', '.join(map(repr, choices))}"

    def read(value: object) -> object:
        for spelling, choice in choices.items():
            # A member is taken by identity, its spelling only as a true str: no str subclass, no int for a bool.
            if value is choice or (type(value) is str and value == spelling):
                return choice
        raise ValueError(f"expected {name}, got {_got(value)}")

    return Leaf(name, read, lambda value: value.value if isinstance(value, enum.Enum) else value)


def _list_of(hint: object) -> Leaf:
    """A tuple, replaced whole, each item read exactly; without an ellipsis its length is part of the type."""
    arguments = typing.get_args(hint)
    is_open = arguments[1:] == (...,)
    items = [parse_type(argument) for argument in arguments if argument is not ...]
    if not items or any(item.tree for item in items):
        raise TypeError(f"{hint}: a list is replaced whole; use a Mapping for blocks that can be updated")

    def paired(values: tuple[typing.Any, ...]) -> Iterable[tuple[int, Type, typing.Any]]:
        return ((index, items[0 if is_open else index], value) for index, value in enumerate(values))

    def read(nodes: tuple[Node, ...]) -> object:
        if not is_open and len(nodes) != len(items):
            raise ValueError(f"expected {len(items)} items, got {len(nodes)}")
        values = []
        for index, item, node in paired(nodes):
            try:
                values.append(item.read(node))
            except ValueError as error:
                raise ValueError(f"item {index}: {error}") from error
        return tuple(values)

    name = f"a list of {', '.join(map(str, items))}"
    return Leaf(name, read, lambda values: [item.write(value) for _, item, value in paired(values)], True)


_GENERIC: Mapping[object, Callable[[typing.Any], Leaf | Keyed]] = {
    tuple: _list_of,
    Mapping: lambda hint: Keyed(*map(parse_type, typing.get_args(hint))),  # type: ignore[arg-type]
    typing.Literal: lambda hint: _choice({value: value for value in typing.get_args(hint)}),
}


def _member(hint: typing.Any) -> Leaf | Keyed | type:
    """What one part of a union means."""
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, Leaf):
            return note
    if hint in _PLAIN:
        return _PLAIN[hint]
    if typing.get_origin(hint) in _GENERIC:
        return _GENERIC[typing.get_origin(hint)](hint)
    if isinstance(hint, enum.EnumMeta):
        return _choice({choice.value: choice for choice in typing.cast(type[enum.Enum], hint)})
    if not hasattr(hint, "__config__"):
        known = "exact scalars, tuple, Mapping, Literal, Enum or a @config class"
        raise TypeError(f"{hint}: not a field type; use {known}")
    if not is_block(hint):
        raise TypeError(f"{hint.__name__}: decorate it with @config, like its parent")
    return typing.cast(type, hint)


def parse_type(hint: object) -> Type:
    """The type meant by an annotation.

    Raises:
        TypeError: it cannot be immutable or cannot be told apart: list, dict, set, two mappings, one tag twice.
    """
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = [_member(part) for part in (typing.get_args(hint) if is_union else [hint])]
    trees: list[Blocks | Keyed] = [member for member in members if isinstance(member, Keyed)]
    trees += _blocks(hint, [member for member in members if isinstance(member, type)])
    if len(trees) > 1:
        raise TypeError(f"{hint}: a mapping could mean more than one of these")
    return Type(tuple(member for member in members if isinstance(member, Leaf)), *trees)


def _blocks(hint: object, classes: list[type]) -> list[Blocks]:
    tags = {vars(cls)["__config__"].tag: cls for cls in classes}
    if len(tags) < len(classes):
        raise TypeError(f"{hint}: two classes have the same tag")
    return [Blocks(tags, classes[0])] if classes else []
