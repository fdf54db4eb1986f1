"""What is known about one path: first what the layers said there, then the value that came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from planner.config.layer import UPDATE, Node, escaped
from planner.config.problem import Origin, Path, Rank, Spoken, one_line, short
from planner.config.types import NOTHING, TAG, Classes, Field, MappingType, Type, schema_of

__all__ = ["ResolvedNode", "Superseded"]


@dataclass(frozen=True, slots=True)
class Superseded:
    """A word that does not count any more, and why: shadowed, unset, replaced or dropped."""

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
        return f"{short(self.value)}  <- {self.origin}  [{self.fate} by {one_line(self.by.where)}]"


@dataclass(slots=True)
class ResolvedNode:
    """One path of a configuration; grows while it is resolved, read-only afterwards.

    Args:
        field: its declaration, except for a key of a mapping and for ``type``.
        word: what counts: the last thing said. For a tree a mapping means "on", anything else is its value.
        past: what counted before, the latest first.
        kids: the paths below, by key.
        chosen: for a block, the class that a word for ``type`` picked.
        default: the default, from the class or from an enclosing block.
        place: where the default stands.
        stray: whether an enclosing block gave the default, so that the block alone would not have it.
        reads: what it was computed from.
    """

    path: Path
    kind: Type
    field: Field | None = None
    word: Node | None = None
    past: list[Superseded] = dataclasses.field(default_factory=list)
    kids: dict[object, ResolvedNode] = dataclasses.field(default_factory=dict)
    chosen: type | None = None
    default: object = NOTHING
    place: str = dataclasses.field(default="", compare=False)
    stray: bool = False
    reads: tuple[Path, ...] = ()
    value: object = NOTHING

    def kid(self, key: object, kind: Type, declared: Field | None = None) -> ResolvedNode:
        """The answer below a key, made if it is new; its type may be another one since it was made."""
        found = self.kids.setdefault(key, ResolvedNode((*self.path, key), kind))
        found.kind, found.field = kind, declared
        return found

    def field_answer(self, cls: type, declared: Field) -> ResolvedNode:
        """The answer of a field of this block, with its default; a new one if nobody said anything there."""
        name = declared.name
        found = self.kids.get(name) or ResolvedNode((*self.path, name), declared.type)
        found.kind, found.field = declared.type, declared
        found.default = getattr(self.default, name) if type(self.default) is cls else declared.default
        found.stray = found.default != declared.default
        found.place = self.place if found.stray else declared.place
        return found

    def tag_answer(self, tag: str) -> ResolvedNode:
        """The same for ``type``."""
        found = self.kids.get("type") or ResolvedNode((*self.path, "type"), TAG)
        found.value, found.place, found.stray = tag, self.place, self.stray
        return found

    def below(self) -> dict[object, ResolvedNode]:
        """The answers one level deeper, fields in the order of the class.

        Fields that nobody said get theirs only here, when somebody asks: the value is the default.
        """
        cls = self.cls
        if cls is None or not self.counts:
            return self.kids
        found: dict[object, ResolvedNode] = {"type": self.tag_answer(self.tag)} if self.tag else {}
        for name, declared in schema_of(cls).fields.items():
            kid = found[name] = self.field_answer(cls, declared)
            if not kid.counts:
                kid.value = kid.default
        return found | self.kids

    def plain_key(self, key: object) -> object:
        """A key as plain data, as ``dump`` writes it."""
        tree = self.kind.tree
        return escaped(tree.key.write(key), UPDATE) if isinstance(tree, MappingType) else key

    def plain_kid(self, key: object) -> ResolvedNode | None:
        """The answer below a key, which may be spelled as ``dump`` writes it."""
        below = self.below()
        return below.get(key) or next(
            (kid for each, kid in below.items() if self.plain_key(each) == key), None
        )

    def walk(self) -> Iterator[ResolvedNode]:
        """This answer and all below."""
        yield self
        for kid in self.below().values():
            yield from kid.walk()

    def switch_on(self, node: Node) -> None:
        """By a mapping; one that is only led through does not hide one that was written out."""
        old = self.word
        if not (old and isinstance(old.content, dict) and node.partial and not old.partial):
            self.end("shadowed", node)
            self.word = node

    def end(self, fate: str, by: Node) -> None:
        """Turns the word, if there is one, into a past one."""
        if self.word is not None:
            self.past.insert(0, Superseded(self.word, fate, by.origin))
            self.word = None

    def end_all(self, fate: str, by: Node) -> None:
        """The same for this path and all below; the class is open again."""
        for answer in self.walk():
            answer.end(fate, by)
            answer.chosen = None

    def spoken(self) -> list[Spoken]:
        """All that was said here, the latest first."""
        nodes = [*([self.word] if self.word else []), *(past.node for past in self.past)]
        return [node.spoken(self.path) for node in nodes]

    @property
    def counts(self) -> bool:
        return self.value is not NOTHING

    @property
    def shape(self) -> Literal["leaf", "block", "map"]:
        """``block`` or ``map`` for one that is on: by a word or, if nothing is said, by default; else ``leaf``."""
        tree = self.kind.tree
        if tree is None or (self.word is not None and not isinstance(self.word.content, dict)):
            return "leaf"
        if isinstance(tree, MappingType):
            return "map" if self.word is not None or isinstance(self.default, Mapping) else "leaf"
        is_on = self.word is not None or self.default is NOTHING or type(self.default) in tree.classes
        return "block" if is_on else "leaf"

    @property
    def origin(self) -> Origin:
        """Who said it and where; for a block or mapping, who switched it on."""
        return Origin(Rank.DEFAULT, self.place) if self.word is None else self.word.origin

    @property
    def written(self) -> object:
        """The value as plain data, as ``dump`` writes it; empty for a block or mapping that is on."""
        return self.kind.write(self.value)

    @property
    def said(self) -> object:
        """The word of a leaf before it was read, where it differs from the value."""
        if self.word is None or self.shape != "leaf" or self.word.plain() == self.written:
            return None
        return self.word.plain()

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
        """Whether somebody said that a block or mapping is there, so that it counts even if empty."""
        if self.word is None:
            return False
        written_out = not self.word.partial if self.shape == "map" else self.field is None
        return written_out or bool(self.kind.members)
