"""What a field may hold, and the exact reading of a word as such a thing."""

from __future__ import annotations

import contextlib
import enum
import pathlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planner.config.layer import Node
from planner.config.problem import short
from planner.config.scalars import core_scalar

__all__ = ["Blocks", "Items", "Keyed", "Leaf", "Type", "is_block", "parse_type"]


def _same(value: typing.Any) -> object:
    return value


@dataclass(frozen=True, slots=True)
class Leaf:
    """A type that is read as one value. Annotate with it to register: ``Annotated[int, Leaf("bytes", …)]``.

    Args:
        name: for messages: ``expected {name}``.
        read: from what was said to the value; raises ValueError or TypeError with a reason.
        write: from the value to plain data that ``read`` takes back.
    """

    name: str
    read: Callable[[typing.Any], object]
    write: Callable[[typing.Any], object] = _same

    def take(self, content: object) -> object:
        """The value meant by the content of a node. Raises ValueError."""
        if isinstance(content, (dict, tuple)):
            raise ValueError(f"expected {self.name}, got {_got(content)}")
        try:
            return self.read(content)
        except (TypeError, ArithmeticError) as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Items:
    """A tuple: replaced whole, each item read exactly. ``fixed`` says that the length is part of the type."""

    items: tuple[Type, ...]
    fixed: bool

    @property
    def name(self) -> str:
        return f"a list of {', '.join(map(str, self.items))}"

    def take(self, content: object) -> object:
        """The value meant by the content of a node. Raises ValueError."""
        if not isinstance(content, tuple):
            raise ValueError(f"expected {self.name}, got {_got(content)}")
        if self.fixed and len(content) != len(self.items):
            raise ValueError(f"expected {len(self.items)} items, got {len(content)}")
        return tuple(self._item(index, node) for index, node in enumerate(content))

    def _item(self, index: int, node: Node) -> object:
        try:
            return self.items[index if self.fixed else 0].read(node)
        except ValueError as error:
            raise ValueError(f"item {index}: {error}") from error

    def write(self, value: tuple[object, ...]) -> object:
        """Plain data that ``take`` understands once it is a node again."""
        return [self.items[index if self.fixed else 0].write(item) for index, item in enumerate(value)]


@dataclass(frozen=True, slots=True)
class Keyed:
    """A Mapping: updated key by key, or, if ``whole``, replaced by each mapping that is said."""

    key: Type
    value: Type
    whole: bool = False

    def read_key(self, key: object, *, is_text: bool) -> object:
        """The canonical spelling of a key. Raises ValueError."""
        if is_text and isinstance(key, str):
            with contextlib.suppress(ValueError):  # then it is a word, or fails as one below
                return self.key.take(core_scalar(key))
        return self.key.take(key)


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
    def tags(self) -> tuple[str, ...]:
        """The values that ``type`` may have; empty if the class is always the same."""
        return tuple(tag for tag in self.members if tag is not None)


@dataclass(frozen=True, slots=True)
class Type:
    """A field's type: what it may be as one value, and the one tree (block or mapping) it may be."""

    members: tuple[Leaf | Items, ...]
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
        """Plain data (None, bool, int, float, str, list) that reads back as the value."""
        for member in self.members:
            if isinstance(member, Items) == isinstance(value, tuple) and _takes(member, value):
                return member.write(value)  # type: ignore[arg-type]
        raise TypeError(f"{short(value)} is not {self}")


def _takes(member: Leaf | Items, value: object) -> bool:
    if isinstance(member, Items):
        return True
    try:
        return member.take(value) == value or value != value
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


def _exact(kind: type, name: str) -> Leaf:
    def read(value: object) -> object:
        if type(value) is not kind:
            raise ValueError(f"expected {name}, got {_got(value)}")
        return value

    return Leaf(name, read)


def _read_float(value: object) -> float:
    if type(value) is not float and type(value) is not int:
        raise ValueError(f"expected a float, got {_got(value)}")
    return float(value)


def _read_path(value: object) -> pathlib.Path:
    if type(value) is not str and not isinstance(value, pathlib.Path):
        raise ValueError(f"expected a path, got {_got(value)}")
    return pathlib.Path(value)


_PLAIN: Mapping[object, Leaf] = {
    bool: _exact(bool, "a bool"),
    int: _exact(int, "an int"),
    str: _exact(str, "a str"),
    type(None): _exact(type(None), "null"),
    float: Leaf("a float", _read_float),
    pathlib.Path: Leaf("a path", _read_path, str),
}


def _one_of(names: Mapping[str, object], name: str) -> Leaf:
    def read(value: object) -> object:
        for spelling, choice in names.items():
            # A member is taken by identity, its spelling only as a true str: no str subclass, no int for a bool.
            if value is choice or (type(value) is str and value == spelling):
                return choice
        raise ValueError(f"expected {name}, got {_got(value)}")

    return Leaf(name, read, lambda value: value.value if isinstance(value, enum.Enum) else value)


def _choice(hint: object) -> Leaf:
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        choices = {member.value: member for member in hint}
    else:
        choices = {value: value for value in typing.get_args(hint)}
    if not all(type(spelling) is str for spelling in choices):
        raise TypeError(f"{hint}: only choices spelled as strings can be said in every source")
    return _one_of(choices, f"one of {', '.join(map(repr, choices))}")


def _items(hint: object) -> Items:
    arguments = typing.get_args(hint)
    fixed = not (len(arguments) == 2 and arguments[1] is ...)
    items = tuple(parse_type(argument) for argument in (arguments if fixed else arguments[:1]))
    if any(item.tree for item in items) or not arguments:
        raise TypeError(f"{hint}: a list is replaced whole; use a Mapping for blocks that can be updated")
    return Items(items, fixed)


def is_block(cls: type) -> bool:
    """Whether ``@config`` was applied to this very class (not only to a parent)."""
    return "__config__" in vars(cls)


def _union(hint: object) -> list[object]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [part for argument in typing.get_args(hint) for part in _union(argument)]
    return [hint]


def _member(hint: object) -> Leaf | Items | Keyed | type:
    origin = typing.get_origin(hint)
    leaf = next((note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Leaf)), None)
    leaf = leaf or _PLAIN.get(hint)
    if leaf is not None:
        return leaf
    if origin is typing.Literal or (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        return _choice(hint)
    if origin is tuple:
        return _items(hint)
    if origin is Mapping:
        key, value = (parse_type(argument) for argument in typing.get_args(hint))
        return Keyed(key, value)
    if isinstance(hint, type) and hasattr(hint, "__config__"):
        if not is_block(hint):
            raise TypeError(f"{hint.__name__}: decorate it with @config, like its parent")
        return hint
    raise TypeError(
        f"{hint}: not a field type; use exact scalars, tuple, Mapping, Literal, Enum or a @config class"
    )


def parse_type(hint: object) -> Type:
    """The type meant by an annotation.

    Raises:
        TypeError: it cannot be immutable or cannot be told apart: list, dict, set, two mappings, one tag twice.
    """
    members = [_member(part) for part in _union(hint)]
    classes = [member for member in members if isinstance(member, type)]
    trees: list[Blocks | Keyed] = [member for member in members if isinstance(member, Keyed)]
    if classes:
        tags = {vars(cls)["__config__"].tag: cls for cls in classes}
        if len(tags) < len(classes):
            raise TypeError(f"{hint}: two classes have the same tag")
        trees.append(Blocks(tags, classes[0]))
    if len(trees) > 1:
        raise TypeError(f"{hint}: a mapping could mean more than one of these")
    return Type(tuple(member for member in members if isinstance(member, (Leaf, Items))), *trees)
