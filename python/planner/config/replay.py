"""All layers, replayed lowest first into one trace per path; no type is checked and no default applied yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from planner.config.kinds import Blocks, Keyed, Type
from planner.config.layer import UNSET, Layer, Node, Unset
from planner.config.origin import Origin
from planner.config.paths import field_of, with_type
from planner.config.problem import CODE_ERRORS, Path, Problem, path_text, short, suggestion
from planner.config.schema import Field, schema_of

__all__ = ["Past", "Replay", "Trace"]


@dataclass(frozen=True, slots=True)
class Past:
    """A word that does not count any more, and why: shadowed, unset, replaced or dropped."""

    value: object
    origin: Origin
    fate: str
    by: Origin | None = None

    def __str__(self) -> str:
        by = f" by {self.by.where}" if self.by else ""
        return f"{short(self.value)}  <- {self.origin}  [{self.fate}{by}]"


@dataclass(slots=True)
class Trace:
    """What all layers said about one path and below; grows during replay, read-only afterwards.

    Args:
        word: what counts: the last thing said. For a tree a mapping means "on", anything else is its value.
        past: what counted before, the latest first.
        owner: for a field below a block, the class that declared it first.
        chosen: for a block, the class that a word for ``type`` picked.
    """

    word: Node | None = None
    past: list[tuple[Node, Past]] = field(default_factory=list)
    kids: dict[object, Trace] = field(default_factory=dict)
    owner: type | None = None
    chosen: type | None = None

    def kid(self, key: object) -> Trace:
        return self.kids.setdefault(key, Trace())

    def end(self, fate: str, by: Node) -> None:
        """Turns the word, if there is one, into a past one."""
        if self.word is not None:
            past = Past(self.word.plain(), self.word.origin, fate, by.origin)
            self.past.insert(0, (self.word, past))
            self.word = None

    def end_all(self, fate: str, by: Node) -> None:
        """The same for the whole tree; the class is open again."""
        self.end(fate, by)
        self.chosen = None
        for kid in self.kids.values():
            kid.end_all(fate, by)

    def walk(self, path: Path = ()) -> Iterator[tuple[Path, Trace]]:
        """This trace and all below, each with its path."""
        yield path, self
        for key, kid in self.kids.items():
            yield from kid.walk((*path, key))


class Replay:
    """Says one layer after the other. Collects what is wrong in ``problems`` and old names in ``renamed``."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.renamed: list[Problem] = []

    def layer(self, kind: Type, layer: Layer, root: Trace) -> None:
        """What one layer says, on top of what was said before."""
        self.problems += layer.problems
        self.say((), kind, layer.root, root)

    def say(self, path: Path, kind: Type, node: Node, trace: Trace) -> None:
        """One word on one path."""
        if node.content is UNSET or node.replace:
            trace.end_all("unset" if node.content is UNSET else "replaced", node)
        if node.content is UNSET:
            return
        tree = kind.tree
        node = with_type(kind, node)
        if tree is None or not isinstance(node.content, dict):
            trace.end_all("shadowed", node)
            trace.word = node
        elif isinstance(tree, Keyed):
            self._say_keyed(path, tree, node, trace)
        else:
            self._switch_on(node, trace)
            self._say_block(path, tree, node, trace)

    def _switch_on(self, node: Node, trace: Trace) -> None:
        """A mapping switches its path on; one that is only led through does not hide one that was written out."""
        if not node.speaks:
            return
        old = trace.word
        if old is None or old.partial or not node.partial or not isinstance(old.content, dict):
            trace.end("shadowed", node)
            trace.word = node

    def _say_keyed(self, path: Path, tree: Keyed, node: Node, trace: Trace) -> None:
        if tree.whole and not node.partial:
            trace.end_all("replaced whole", node)
        self._switch_on(node, trace)
        spellings: dict[object, object] = {}
        for raw, child in _children(node).items():
            try:
                key = tree.read_key(raw, is_text=node.text_keys)
            except ValueError as error:
                self._problem((*path, raw), f"the key does not fit: {error}", child)
                continue
            if key in spellings:
                self._problem((*path, key), f"said twice, as {spellings[key]!r} and as {raw!r}", child)
            spellings[key] = raw
            self.say((*path, key), tree.value, child, trace.kid(key))

    def _say_block(self, path: Path, blocks: Blocks, node: Node, trace: Trace) -> None:
        children = _children(node)
        tagged = bool(blocks.tags)
        if tagged and "type" in children:
            self._choose(path, blocks, children["type"], trace)
        names: dict[str, object] = {}
        for raw, child in children.items():
            if tagged and raw == "type":
                continue
            found = self._find(path, blocks, raw, child, trace)
            if found is None:
                continue
            if found.name in names:
                self._problem(
                    (*path, found.name), f"said twice, as {names[found.name]!r} and as {raw!r}", child
                )
            names[found.name] = raw
            kid = trace.kid(found.name)
            kid.owner = found.owner
            self.say((*path, found.name), found.type, self._translated(path, found, raw, child), kid)

    def _choose(self, path: Path, blocks: Blocks, node: Node, trace: Trace) -> None:
        """A word for ``type``: what was said for another class is dropped, unless both inherit the field."""
        tag = node.content if isinstance(node.content, (str, Unset)) else node.text
        if tag is not UNSET and (not isinstance(tag, str) or tag not in blocks.tags):
            known = ", ".join(blocks.tags)
            self._problem(
                (*path, "type"), f"unknown type, expected one of {known}{suggestion(tag, blocks.tags)}", node
            )
            return
        chosen = blocks.members[tag] if isinstance(tag, str) else None
        fields = schema_of(chosen or blocks.first).fields
        for name, kid in trace.kids.items():
            if name != "type" and not (name in fields and kid.owner is fields[str(name)].owner):
                kid.end_all(f"dropped: type changed to {tag!r}", node)
        self.say((*path, "type"), Type(()), node, trace.kid("type"))
        trace.chosen = chosen

    def _find(self, path: Path, blocks: Blocks, raw: object, node: Node, trace: Trace) -> Field | None:
        """The field that a key means. Before anybody chose a class, a key of any of the classes will do."""
        current = trace.chosen or blocks.first
        known = Blocks({None: current}, current)
        found = field_of(known, raw) or (None if trace.chosen else field_of(blocks, raw))
        if found is None:
            names = [*schema_of(current).fields, *(["type"] if blocks.tags else [])]
            self._problem((*path, raw), f"unknown key in {current.__name__}{suggestion(raw, names)}", node)
        return found

    def _translated(self, path: Path, found: Field, raw: object, node: Node) -> Node:
        if raw == found.name:
            return node
        old, new = path_text((*path, raw)), path_text((*path, found.name))
        self.renamed.append(
            Problem((*path, raw), f"{old!r} is now called {new!r}", (node.spoken((*path, raw)),))
        )
        transform = found.renamed[str(raw)]
        if transform is None or node.content is UNSET:
            return node
        try:
            return Node(
                Origin(node.origin.rank, node.origin.where, f"from {old} = {node.plain()!r}"),
                transform(node.content),
            )
        except CODE_ERRORS as error:
            self._problem((*path, raw), f"cannot be translated to {new!r}: {error}", node)
            return node

    def _problem(self, path: Path, what: str, node: Node) -> None:
        self.problems.append(Problem(path, what, (node.spoken(path),)))


def _children(node: Node) -> dict[object, Node]:
    assert isinstance(node.content, dict)
    return node.content
