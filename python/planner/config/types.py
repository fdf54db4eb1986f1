"""Types of fields and what is known of a configuration class: how one value is read, and the trees that have paths below."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import linecache
import os
import pathlib
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from planner.config.document import core_scalar
from planner.config.layer import Node, is_unset
from planner.config.problem import Path, suggestion
from planner.spelling import shown

Compute = Callable[[typing.Any, typing.Any], object]
Check = Callable[[typing.Any, typing.Any], "str | Iterable[str] | None"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A type that is read as one value. Annotate with it to register: ``Annotated[int, Leaf("bytes", …)]``.

    Args:
        name: for messages: ``expected {name}``.
        read: from what was set to the value; raises ValueError or TypeError with a reason.
        write: from the value to plain data that ``read`` takes back; None for the value itself.
        refuse: what of a value that a person wrote is most likely a slip; raises ValueError with what may have been meant.
        is_list: whether it reads a tuple of nodes instead of a scalar.
    """

    name: str
    read: Callable[[typing.Any], object]
    write: Callable[[typing.Any], object] | None = None
    is_list: bool = False
    refuse: Callable[[typing.Any], None] | None = None

    def take(self, content: object, *, is_written: bool = False) -> object:
        """The value meant by the content of a node. Raises ValueError."""
        if isinstance(content, dict) or isinstance(content, tuple) != self.is_list:
            raise ValueError(f"expected {self.name}, got {got(content)}")
        try:
            if is_written and self.refuse:
                self.refuse(content)
            return self.read(content)
        except (TypeError, ArithmeticError) as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class MappingType:
    """A Mapping: updated key by key, or, if ``whole``, replaced by each mapping that is set.

    Args:
        key, value: what they are read as.
        whole: whether a mapping replaces what was set before.
        scalar_key: the key that a single value stands for.
    """

    key: Type
    value: Type
    whole: bool = False
    scalar_key: str | None = None

    def child(self, key: object, *, is_text: bool, chosen: type | None) -> tuple[object, Type, None]:
        """The canonical spelling of a key, and what stands there. Raises ValueError."""
        if is_text and isinstance(key, str):
            with contextlib.suppress(ValueError):  # then the key is taken as it is, or fails below
                return self.key.take(core_scalar(key)), self.value, None
        try:
            return self.key.take(key), self.value, None
        except ValueError as error:
            raise ValueError(f"the key does not fit: {error}") from error


@dataclass(frozen=True, slots=True)
class Classes:
    """One nested class, or several of which a tag (the key ``type``) picks one.

    Args:
        members: the classes by tag; a class without a tag stands under None.
        first: the class that is meant as long as no type is set.
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
        """The name of a field, and its declaration. Raises ValueError.

        Args:
            chosen: the class; before one is chosen, a key of any of the classes will do.
        """
        if self.tags and key == "type":
            return key, TAG, None
        current = chosen or self.first
        for cls in [chosen] if chosen else [current, *self.classes]:
            field = vars(cls)["__config__"].fields.get(key)
            if field is not None:
                return field.name, field.type, field
        known = [*vars(current)["__config__"].fields, *(["type"] if self.tags else [])]
        raise ValueError(f"unknown key in {current.__name__}{suggestion(key, known)}")


@dataclass(frozen=True, slots=True)
class Type:
    """A field's type: what it may be as one value, and the one tree (block or mapping) it may be."""

    members: tuple[Leaf, ...]
    tree: Classes | MappingType | None = None

    def __str__(self) -> str:
        tree = "a mapping" if isinstance(self.tree, MappingType) else self.tree and self.tree.first.__name__
        return " or ".join([*([tree] if tree else []), *(member.name for member in self.members)])

    def read(self, node: Node) -> object:
        """The value of a node. Raises ValueError with the reason of every member that refused it."""
        is_written = node.origin.is_written
        try:
            return self.take(node.content, is_written=is_written)
        except ValueError:
            if node.text is None:
                raise
        return self.take(node.text, is_written=is_written)

    def take(self, content: object, *, is_written: bool = False) -> object:
        """The value of the first member that takes the content. Raises ValueError."""
        reasons = []
        for member in self.members:
            try:
                return member.take(content, is_written=is_written)
            except ValueError as error:
                # Who says something does not mean to leave it out.
                if content is None or member.name != "null":
                    reasons.append(str(error))
        if self.tree is not None:
            reasons.insert(0, f"expected {self}, got {got(content)}")
        raise ValueError("; ".join(reasons))

    def write(self, value: object) -> object:
        """Plain data (None, bool, int, float, str, list) that reads back as the value; empty for a tree."""
        if self.tree is not None and (isinstance(value, Mapping) or is_block(type(value))):
            return {}
        for member in self.members:
            if member.is_list == isinstance(value, tuple) and (member.is_list or _takes(member, value)):
                return member.write(value) if member.write else value
        raise TypeError(f"{shown(value)} is not {self}")

    def spelled_out(self, node: Node) -> Node:
        """The mapping that a single value is short for, unless a member takes such a value: ``{type: tag}`` for a text where
        a tag picks the class, and the one key of a mapping that has a key for it."""
        key = self._key_of(node.content)
        if key is None or is_unset(node.content) or any(_takes(each, node.content) for each in self.members):
            return node
        return Node(node.origin, {key: node}, partial=True)

    def _key_of(self, content: object) -> str | None:
        if isinstance(self.tree, Classes):
            return "type" if self.tree.tags and isinstance(content, str) else None
        return self.tree.scalar_key if self.tree and isinstance(content, str | int | float) else None


def split_path(kind: Type, text: str) -> tuple[Path, Type | None]:
    """The keys of a dotted path, and the type found there; under a mapping of leaves all that is left is one key.

    Example:
        >>> from planner.settings.schema import SETTINGS
        >>> split_path(SETTINGS, "special_dtypes.model.layers.0.weight")[0]
        ('special_dtypes', 'model.layers.0.weight')
    """
    path: list[object] = []
    found, dot = typing.cast("Type | None", kind), "."
    while dot:
        tree = found.tree if found else None
        is_last = tree is None or (isinstance(tree, MappingType) and tree.value.tree is None)
        part, dot, text = (text, "", "") if is_last else text.partition(".")
        key: object = part
        found = None
        if tree is not None:
            with contextlib.suppress(ValueError):  # resolve reports it, with its origin
                key, found, _ = tree.child(part, is_text=True, chosen=None)
        path.append(key)
    return tuple(path), found


def fields_of(cls: type) -> Collection[str]:
    """The names of a ``@config`` class's fields."""
    names: Collection[str] = vars(cls)["__config__"].fields
    return names


def is_block(cls: type) -> bool:
    """Whether ``@config`` was applied to this very class (not only to a parent)."""
    return "__config__" in vars(cls)


def _takes(leaf: Leaf, value: object) -> bool:
    try:
        return leaf.take(value) == value or value != value
    except ValueError:
        return False


def got(content: object) -> str:
    """What was set, for messages."""
    if isinstance(content, dict):
        return "a mapping"
    if isinstance(content, tuple):
        return "a list"
    if is_block(type(content)):
        return f"an instance of {type(content).__name__}, which would say all its defaults; pass a mapping"
    return "null" if content is None else f"{type(content).__name__} {shown(content)}"


def exact(name: str, *kinds: type, make: Callable[[typing.Any], object] | None = None) -> Leaf:
    """Reads values of exactly these types, and makes something of them."""

    def read(value: object) -> object:
        if type(value) not in kinds:
            raise ValueError(f"expected {name}, got {got(value)}")
        return make(value) if make else value

    return Leaf(name, read, str if make is pathlib.Path else None)


TAG = Type((exact("a type", str),))
"""What ``type`` holds; which tags there are is checked where it is set."""


NOTHING = object()
"""What stands for a default or a value that is not there."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One field of a configuration class, as it is declared.

    Args:
        declared_in: the class whose body declares it.
        owner: the class that declared it first; two variants share a field if they inherit it from one owner.
        default: the plain default, or ``NOTHING``.
        compute: gives the value if none is set (or always, if ``derived``), from the block and the root.
    """

    name: str
    declared_in: type
    owner: type
    type: Type
    default: object
    compute: Compute | None
    derived: bool

    @property
    def place(self) -> str:
        """``file.py:line`` of the declaration."""
        return place_of(self.declared_in, self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """What ``@config`` knows of one class."""

    tag: str | None
    fields: Mapping[str, Field]
    rules: Mapping[str, Check]

    @functools.cached_property
    def is_constant(self) -> bool:
        """Whether an instance stays as it is if nothing is set: nothing is computed or checked."""
        fields = self.fields.values()
        return not self.rules and all(not field.compute and is_constant(field.default) for field in fields)


def schema_of(cls: type) -> Schema:
    """What ``@config`` knows of a class."""
    return typing.cast(Schema, vars(cls)["__config__"])


def is_constant(default: object) -> bool:
    """Whether a default is the value if nothing is set, without looking further."""
    return schema_of(type(default)).is_constant if is_block(type(default)) else default is not NOTHING


def place_of(cls: type, name: str = "") -> str:
    """``file.py:line`` of a field in the body of a class, or of the class itself; its module if it has no source."""
    try:
        file = inspect.getsourcefile(cls)
    except TypeError:  # typed in at a prompt
        file = None
    line = _lines_of(file).get((cls.__qualname__, name)) if file else None
    return f"{os.path.basename(file)}:{line}" if file and line else os.path.basename(file or cls.__module__)


@functools.cache
def _lines_of(file: str) -> Mapping[tuple[str, str], int]:
    """The line of each class and of each of its fields; a class itself stands under the empty name.

    A file is parsed once for all of its classes: ``inspect.getsourcelines`` parses it for each.
    """
    found: dict[tuple[str, str], int] = {}

    def visit(node: ast.AST, inside: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                name = f"{inside}{child.name}"
                found[name, ""] = min([child.lineno, *(each.lineno for each in child.decorator_list)])
                fields = [item for item in child.body if isinstance(item, ast.AnnAssign)]
                found.update({(name, ast.unparse(item.target)): item.lineno for item in fields})
                visit(child, f"{name}.")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child, f"{inside}{child.name}.<locals>.")
            elif isinstance(child, ast.stmt):
                visit(child, inside)

    try:
        visit(ast.parse("".join(linecache.getlines(file))), "")
    except SyntaxError:  # edited since it was imported
        return {}
    return found
