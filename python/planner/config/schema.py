"""How a configuration class is declared: a frozen keyword-only dataclass, and what its fields say about themselves."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import os
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping

from planner.config.frozen import FrozenMap
from planner.config.kinds import Blocks, Keyed, Type, is_block, parse_type
from planner.config.layer import from_python
from planner.config.origin import Origin, Rank

__all__ = ["Field", "Schema", "config", "rule", "schema_of", "setting"]

T = typing.TypeVar("T")
Compute = Callable[[typing.Any, typing.Any], object]
Check = Callable[[typing.Any, typing.Any], "str | Iterable[str] | None"]
Transform = Callable[[typing.Any], object]

MISSING = dataclasses.MISSING


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One field of a configuration class, as its declaration says.

    Args:
        owner: the class that declared it first; two variants share a field if they inherit it from one owner.
        default: the plain default, or ``dataclasses.MISSING``.
        compute: gives the value if nobody says one (or always, if ``derived``), from the block and the root.
        renamed: old names, each with a function that translates an old value, or None.
    """

    name: str
    owner: type
    type: Type
    default: object
    compute: Compute | None
    derived: bool
    renamed: Mapping[str, Transform | None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """What ``@config`` knows of one class."""

    cls: type
    tag: str | None
    fields: Mapping[str, Field]
    rules: Mapping[str, Check]

    def place(self, name: str | None = None) -> str:
        """``file.py:line`` of a field, or of the class itself."""
        owner = self.fields[name].owner if name else self.cls
        file, lines = _source_lines(self.cls)
        if name and name not in lines:
            return schema_of(owner).place(name) if owner is not self.cls else file
        return f"{file}:{lines[name or '']}" if lines else file


def setting(
    *,
    default: object = MISSING,
    compute: Compute | None = None,
    derived: Compute | None = None,
    whole: bool = False,
    renamed: Mapping[str, Transform | None] | None = None,
) -> typing.Any:
    """Declares a field that needs more than a default.

    Args:
        default: what an instance built without any layer has.
        compute: ``f(block, root)``: the default computed from other fields; it yields to any word.
        derived: ``f(block, root)``: evaluated last; nobody can set such a field.
        whole: a mapping that means something only as a whole: a mapping replaces it, a dotted path updates it.
        renamed: old names of the field; each maps to a function from the old value to the new one, or to None.

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
        "renamed": renamed or {},
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
    made.__config__ = Schema(cls=made, tag=tag, fields=fields, rules=rules)
    return typing.cast(type, made)


def _field(cls: type, name: str, hint: object) -> Field:
    inherited = next(
        (vars(base)["__config__"].fields.get(name) for base in cls.__mro__[1:] if is_block(base)), None
    )
    if inherited is not None and name not in vars(cls).get("__annotations__", {}):
        return typing.cast(Field, inherited)
    declared = vars(cls).get(name, MISSING)
    notes: Mapping[str, typing.Any] = {}
    if isinstance(declared, dataclasses.Field):
        notes, declared = declared.metadata, declared.default
    kind = _with_notes(parse_type(hint), declared, bool(notes.get("whole")))
    if notes.get("compute") and isinstance(kind.tree, Blocks):
        raise TypeError(f"{cls.__name__}.{name}: a block cannot be computed; compute its fields")
    default = MISSING if declared is MISSING else _checked(f"{cls.__name__}.{name}", kind, declared)
    _set_default(cls, name, default)
    return Field(
        name=name,
        owner=inherited.owner if inherited else cls,
        type=kind,
        default=default,
        compute=notes.get("compute"),
        derived=bool(notes.get("derived")),
        renamed=notes.get("renamed", {}),
    )


def _with_notes(kind: Type, default: object, whole: bool) -> Type:
    """The type, knowing which class the default has and whether the mapping is one whole."""
    if isinstance(kind.tree, Keyed):
        return dataclasses.replace(kind, tree=dataclasses.replace(kind.tree, whole=whole))
    if isinstance(kind.tree, Blocks) and type(default) in kind.tree.members.values():
        return dataclasses.replace(kind, tree=dataclasses.replace(kind.tree, first=type(default)))
    return kind


def _checked(name: str, kind: Type, default: object) -> object:
    if isinstance(kind.tree, Blocks) and type(default) in kind.tree.members.values():
        return default
    if isinstance(kind.tree, Keyed) and isinstance(default, Mapping):
        if default:
            raise TypeError(f"{name}: a mapping starts empty, or its default keys could not be deleted")
        return FrozenMap()
    node, _ = from_python(default, Origin(Rank.DEFAULT, name))
    try:
        return kind.read(node)
    except ValueError as error:
        raise TypeError(f"{name}: the default does not fit: {error}") from error


def _set_default(cls: type, name: str, default: object) -> None:
    declared = vars(cls).get(name, MISSING)
    if isinstance(declared, dataclasses.Field):
        declared.default = default
    elif default is not MISSING:
        setattr(cls, name, default)


def schema_of(cls: type) -> Schema:
    """What ``@config`` knows of a class."""
    return typing.cast(Schema, vars(cls)["__config__"])


@functools.cache
def _source_lines(cls: type) -> tuple[str, Mapping[str, int]]:
    """The file of a class, and the line of each field; the class itself stands under the empty name."""
    try:
        source, start = inspect.getsourcelines(cls)
        tree = ast.parse(textwrap.dedent("".join(source))).body[0]
    except (OSError, TypeError, SyntaxError):  # typed in at a prompt, or without its source
        return cls.__module__, {}
    assert isinstance(tree, ast.ClassDef)
    file = os.path.basename(inspect.getsourcefile(cls) or cls.__module__)
    named = {
        item.target.id: item
        for item in tree.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    return file, {
        "": start + tree.lineno - 1,
        **{name: start + item.lineno - 1 for name, item in named.items()},
    }
