"""How a configuration class is declared: a frozen keyword-only dataclass, and what its fields declare."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping

from planner.config.annotations import parse_type
from planner.config.frozen import FrozenMap
from planner.config.layer import from_python
from planner.config.problem import Origin, Rank
from planner.config.types import (
    NOTHING,
    Check,
    Classes,
    Compute,
    Field,
    MappingType,
    Schema,
    Type,
    is_block,
    schema_of,
)

T = typing.TypeVar("T")

_MISSING = dataclasses.MISSING


def setting(
    *,
    default: object = _MISSING,
    compute: Compute | None = None,
    derived: Compute | None = None,
    whole: bool = False,
    scalar_key: str | None = None,
) -> typing.Any:
    """Declares a field that needs more than a default.

    Args:
        default: what an instance built without any layer has.
        compute: ``f(block, root)``: the default computed from other fields; it yields to any value that is set.
        derived: ``f(block, root)``: evaluated last; such a field cannot be set.
        whole: a mapping that means something only as a whole: a mapping replaces it, a dotted path updates it.
        scalar_key: of a mapping, the key that a single value in its place stands for.

    Example:
        >>> @config
        ... class Heads:
        ...     hidden: int
        ...     count: int = 4
        ...     size: int = setting(default=0, compute=lambda heads, root: heads.hidden // heads.count)
        >>> from planner.config import Stack
        >>> Stack(Heads).set(hidden=64).resolve().config
        Heads(hidden=64, count=4, size=16)
    """
    notes = {
        "compute": compute or derived,
        "derived": derived is not None,
        "whole": whole,
        "scalar_key": scalar_key,
    }
    # One Field call cannot be typed for "with or without a default"; the notes travel beside it.
    declared: typing.Any = dataclasses.field(metadata=notes)
    declared.default = default
    return declared


def rule(check: Check) -> Check:
    """Marks a method ``f(block, root)`` that returns None, an error text, or several; it cannot change a value."""
    check.__rule__ = True  # type: ignore[attr-defined]
    return check


@typing.overload
def config(cls: type[T], /) -> type[T]: ...
@typing.overload
def config(*, tag: str) -> Callable[[type[T]], type[T]]: ...
@typing.dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(setting,))
def config(cls: typing.Any = None, /, *, tag: str | None = None) -> typing.Any:
    """Makes a class a configuration class: a frozen keyword-only dataclass whose fields can be layered.

    Args:
        cls: the class; it may inherit from other configuration classes and have methods.
        tag: the value of ``type`` that picks this class where a field's annotation is a union of classes.

    Raises:
        TypeError: a field type that is not immutable, a default that does not fit its type, a non-empty default of
            a mapping (it could not be deleted), or a ``__post_init__`` (nothing changes a value after resolve).
    """
    if cls is None:
        return functools.partial(_declare, tag=tag)
    return _declare(cls, tag=tag)


def _declare(cls: type, *, tag: str | None) -> type:
    if hasattr(cls, "__post_init__"):
        raise TypeError(
            f"{cls.__name__}: no __post_init__; use setting(compute=…), setting(derived=…) or @rule"
        )
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {
        name: _field(cls, name, hint)
        for name, hint in hints.items()
        if typing.get_origin(hint) is not typing.ClassVar
    }
    if tag is not None and "type" in fields:
        raise TypeError(f"{cls.__name__}: the name 'type' belongs to the tag")
    made: typing.Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    marked = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
    rules = {name: value for name, value in marked.items() if getattr(value, "__rule__", False)}
    made.__config__ = Schema(tag=tag, fields=fields, rules=rules)
    return typing.cast(type, made)


def _field(cls: type, name: str, hint: object) -> Field:
    inherited = next((schema_of(base).fields.get(name) for base in cls.__mro__[1:] if is_block(base)), None)
    if inherited is not None and name not in vars(cls).get("__annotations__", {}):
        return inherited
    declared = vars(cls).get(name, _MISSING)
    if not isinstance(declared, dataclasses.Field):
        declared = setting(default=declared)
    notes, place = declared.metadata, f"{cls.__name__}.{name}"
    kind = _with_notes(place, parse_type(hint), notes, type(declared.default))
    if declared.default is not _MISSING:
        declared.default = _checked(place, kind, declared.default)
    setattr(cls, name, declared)
    return Field(
        name=name,
        declared_in=cls,
        owner=inherited.owner if inherited else cls,
        type=kind,
        default=NOTHING if declared.default is _MISSING else declared.default,
        compute=notes["compute"],
        derived=notes["derived"],
    )


def _with_notes(place: str, kind: Type, notes: Mapping[str, typing.Any], given: type) -> Type:
    """The type, knowing what is particular to a mapping, and which class the default has."""
    tree = kind.tree
    if isinstance(tree, MappingType):
        tree = dataclasses.replace(tree, whole=notes["whole"], scalar_key=notes["scalar_key"])
    elif isinstance(tree, Classes) and notes["compute"]:
        raise TypeError(f"{place}: a block cannot be computed; compute its fields")
    elif isinstance(tree, Classes) and given in tree.classes:
        tree = dataclasses.replace(tree, first=given)
    return dataclasses.replace(kind, tree=tree)


def _checked(name: str, kind: Type, default: object) -> object:
    """The default as a value for it would be read. Raises TypeError if it does not fit."""
    if isinstance(kind.tree, Classes) and type(default) in kind.tree.classes:
        fields = schema_of(type(default)).fields
        return dataclasses.replace(
            default,  # type: ignore[type-var]
            **{
                key: _checked(f"{name}.{key}", each.type, getattr(default, key))
                for key, each in fields.items()
            },
        )
    if isinstance(kind.tree, MappingType) and isinstance(default, Mapping):
        if default:
            raise TypeError(f"{name}: a mapping starts empty, or its default keys could not be deleted")
        return FrozenMap()
    try:
        return kind.read(from_python(default, Origin(Rank.DEFAULT, name))[0])
    except ValueError as error:
        raise TypeError(f"{name}: the default does not fit: {error}") from error
