"""Annotations read as types of fields."""

from __future__ import annotations

import enum
import pathlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping

from planner.config.layer import Node
from planner.config.problem import suggestion
from planner.config.types import Classes, Leaf, MappingType, Type, exact, got, is_block

_PLAIN: Mapping[object, Leaf] = {
    bool: exact("a bool", bool),
    int: exact("an int", int),
    str: exact("a str", str),
    type(None): exact("null", type(None)),
    float: exact("a float", float, int, make=float),
    pathlib.Path: exact("a path", str, type(pathlib.Path()), make=pathlib.Path),
}


def _choice(choices: Mapping[typing.Any, object]) -> Leaf:
    """Reads one of several choices, by spelling."""
    if not all(type(spelling) is str for spelling in choices):
        raise TypeError(f"{list(choices)}: only choices spelled as strings can be said in every source")
    name = f"one of {', '.join(map(repr, choices))}"

    def read(value: object) -> object:
        for spelling, choice in choices.items():
            # A member is taken by identity, its spelling only as a true str: no str subclass, no int for a bool.
            if value is choice or (type(value) is str and value == spelling):
                return choice
        raise ValueError(f"expected {name}, got {got(value)}{suggestion(value, choices)}")

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


_GENERIC: Mapping[object, Callable[[typing.Any], Leaf | MappingType]] = {
    tuple: _list_of,
    Mapping: lambda hint: MappingType(*map(parse_type, typing.get_args(hint))),  # type: ignore[arg-type]
    typing.Literal: lambda hint: _choice({value: value for value in typing.get_args(hint)}),
}


def _member(hint: typing.Any) -> Leaf | MappingType | type:
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
    trees: list[Classes | MappingType] = [member for member in members if isinstance(member, MappingType)]
    trees += _blocks(hint, [member for member in members if isinstance(member, type)])
    if len(trees) > 1:
        raise TypeError(f"{hint}: a mapping could mean more than one of these")
    return Type(tuple(member for member in members if isinstance(member, Leaf)), *trees)


def _blocks(hint: object, classes: list[type]) -> list[Classes]:
    tags = {vars(cls)["__config__"].tag: cls for cls in classes}
    if len(tags) < len(classes):
        raise TypeError(f"{hint}: two classes have the same tag")
    return [Classes(tags, classes[0])] if classes else []
