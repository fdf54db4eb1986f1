"""What is known about one path: first what the layers set there, then the value that came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from planner.config.layer import UPDATE, Node, escaped
from planner.config.problem import Origin, Path, Rank, SourcedValue
from planner.config.types import NOTHING, TAG, Classes, Field, MappingType, Type, schema_of
from planner.spelling import one_line, shown


@dataclass(frozen=True, slots=True)
class Superseded:
    """A value that does not count any more, and why: shadowed, unset, replaced or dropped."""

    node: Node
    fate: str
    by: Origin

    @property
    def value(self) -> object:
        return self.node.plain()

    @property
    def origin(self) -> Origin:
        return self.node.origin

    def __str__(self) -> str:
        return f"{shown(self.value)}  <- {self.origin}  [{self.fate} by {one_line(self.by.where)}]"


@dataclass(slots=True)
class ResolvedNode:
    """One path of a configuration; grows while it is resolved, read-only afterwards.

    Args:
        field: its declaration, except for a key of a mapping and for ``type``.
        current: what counts: the last value that was set. For a tree a mapping means "on", anything else is its value.
        past: what counted before, the latest first.
        children: the paths below, by key.
        chosen: for a block, the class that a value for ``type`` picked.
        default: the default, from the class or from an enclosing block.
        place: where the default stands.
        is_inherited_default: whether an enclosing block gave the default, so that the block alone would not have it.
        reads: what it was computed from.
    """

    path: Path
    kind: Type
    field: Field | None = None
    current: Node | None = None
    past: list[Superseded] = dataclasses.field(default_factory=list)
    children: dict[object, ResolvedNode] = dataclasses.field(default_factory=dict)
    chosen: type | None = None
    default: object = NOTHING
    place: str = dataclasses.field(default="", compare=False)
    is_inherited_default: bool = False
    reads: tuple[Path, ...] = ()
    value: object = NOTHING

    def child(self, key: object, kind: Type, declared: Field | None = None) -> ResolvedNode:
        """The node below a key, made if it is new; its type may be another one since it was made."""
        found = self.children.setdefault(key, ResolvedNode((*self.path, key), kind))
        found.kind, found.field = kind, declared
        return found

    def field_answer(self, cls: type, declared: Field) -> ResolvedNode:
        """The node of a field of this block, with its default; a new one if nothing was set there."""
        name = declared.name
        found = self.children.get(name) or ResolvedNode((*self.path, name), declared.type)
        found.kind, found.field = declared.type, declared
        found.default = getattr(self.default, name) if type(self.default) is cls else declared.default
        found.is_inherited_default = found.default != declared.default
        found.place = self.place if found.is_inherited_default else declared.place
        return found

    def tag_answer(self, tag: str) -> ResolvedNode:
        """The same for ``type``."""
        found = self.children.get("type") or ResolvedNode((*self.path, "type"), TAG)
        found.value, found.place, found.is_inherited_default = tag, self.place, self.is_inherited_default
        return found

    def below(self) -> dict[object, ResolvedNode]:
        """The nodes one level deeper, fields in the order of the class.

        Fields that were not set get their node only here, when it is asked for: the value is the default.
        """
        cls = self.cls
        if cls is None or not self.counts:
            return self.children
        found: dict[object, ResolvedNode] = {"type": self.tag_answer(self.tag)} if self.tag else {}
        for name, declared in schema_of(cls).fields.items():
            child = found[name] = self.field_answer(cls, declared)
            if not child.counts:
                child.value = child.default
        return found | self.children

    def plain_key(self, key: object) -> object:
        """A key as plain data, as ``dump`` writes it."""
        tree = self.kind.tree
        return escaped(tree.key.write(key), UPDATE) if isinstance(tree, MappingType) else key

    def plain_child(self, key: object) -> ResolvedNode | None:
        """The node below a key, which may be spelled as ``dump`` writes it."""
        below = self.below()
        return below.get(key) or next(
            (child for each, child in below.items() if self.plain_key(each) == key), None
        )

    def walk(self) -> Iterator[ResolvedNode]:
        """This node and all below."""
        yield self
        for child in self.below().values():
            yield from child.walk()

    def switch_on(self, node: Node) -> None:
        """By a mapping; one that is only led through does not hide one that was written out."""
        old = self.current
        if not (old and isinstance(old.content, dict) and node.partial and not old.partial):
            self.end("shadowed", node)
            self.current = node

    def end(self, fate: str, by: Node) -> None:
        """Turns the current value, if there is one, into a past one."""
        if self.current is not None:
            self.past.insert(0, Superseded(self.current, fate, by.origin))
            self.current = None

    def end_all(self, fate: str, by: Node) -> None:
        """The same for this path and all below; the class is open again."""
        for answer in self.walk():
            answer.end(fate, by)
            answer.chosen = None

    def sourced_values(self) -> list[SourcedValue]:
        """All that was set here, the latest first."""
        nodes = [*([self.current] if self.current else []), *(past.node for past in self.past)]
        return [node.sourced(self.path) for node in nodes]

    @property
    def counts(self) -> bool:
        return self.value is not NOTHING

    @property
    def shape(self) -> Literal["leaf", "block", "map"]:
        """``block`` or ``map`` for one that is on: by a value or, if none is set, by default; else ``leaf``."""
        tree = self.kind.tree
        if tree is None or (self.current is not None and not isinstance(self.current.content, dict)):
            return "leaf"
        if isinstance(tree, MappingType):
            return "map" if self.current is not None or isinstance(self.default, Mapping) else "leaf"
        is_on = self.current is not None or self.default is NOTHING or type(self.default) in tree.classes
        return "block" if is_on else "leaf"

    @property
    def origin(self) -> Origin:
        """What set it and where; for a block or mapping, what switched it on."""
        return Origin(Rank.DEFAULT, self.place) if self.current is None else self.current.origin

    @property
    def written(self) -> object:
        """The value as plain data, as ``dump`` writes it; empty for a block or mapping that is on."""
        return self.kind.write(self.value)

    @property
    def raw(self) -> object:
        """The value of a leaf before it was read, where reading changes it."""
        if self.current is None or self.shape != "leaf" or self.current.plain() == self.written:
            return None
        return self.current.plain()

    @property
    def cls(self) -> type | None:
        """For a block, its class: what was chosen, else that of the default."""
        tree, given = self.kind.tree, type(self.default)
        if not isinstance(tree, Classes) or self.shape != "block":
            return None
        return self.chosen or (given if given in tree.classes else tree.first)

    @property
    def tag(self) -> str | None:
        """For a block, what picks its class."""
        return schema_of(self.cls).tag if self.cls else None

    @property
    def opened(self) -> bool:
        """Whether a block or mapping was switched on by itself, so that it counts even if empty."""
        if self.current is None:
            return False
        written_out = not self.current.partial if self.shape == "map" else self.field is None
        return written_out or bool(self.kind.members)
