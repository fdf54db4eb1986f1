"""All layers, replayed lowest first into one tree of answers; no type is checked and no default applied yet."""

from __future__ import annotations

from planner.config.answer import ResolvedNode
from planner.config.layer import UPDATE, Node, is_unset, unescaped
from planner.config.problem import CODE_ERRORS, Origin, Path, Problem, path_text, suggestion
from planner.config.types import Classes, Field, MappingType, schema_of

__all__ = ["Replay"]


class Replay:
    """Says one word after the other. Collects what is wrong in ``problems`` and old names in ``renamed``."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.renamed: list[Problem] = []

    def say_root(self, root: ResolvedNode, node: Node) -> None:
        """All that one layer says. What cannot be meant for a whole configuration is wrong even where more is said on top."""
        if not isinstance(node.content, dict) and not is_unset(node.content):
            try:
                root.kind.read(root.kind.with_type(node))
            except ValueError as error:
                self._problem((), str(error), node)
                return
        self.say(root, node)

    def say(self, answer: ResolvedNode, node: Node) -> None:
        """One word, on top of what was said before."""
        if is_unset(node.content):
            answer.end_all("unset", node)
            return
        node = node.as_word()
        if node.replace:
            answer.end_all("replaced", node)
        tree, node = answer.kind.tree, answer.kind.with_type(node)
        if tree is None or not isinstance(node.content, dict):
            answer.end_all("shadowed", node)
            answer.word = node
            return
        if isinstance(tree, MappingType) and tree.whole and not node.partial:
            answer.end_all("replaced whole", node)
        if node.speaks:
            answer.switch_on(node)
        self._say_below(answer, tree, node.content, is_text=node.text_keys)

    def _say_below(
        self, answer: ResolvedNode, tree: MappingType | Classes, words: dict[object, Node], *, is_text: bool
    ) -> None:
        if isinstance(tree, Classes) and tree.tags and "type" in words:
            self._choose(answer, tree, words["type"])
        spellings: dict[object, object] = {}
        for raw, node in words.items():
            try:
                key, kind, field = tree.child(unescaped(raw, UPDATE), is_text=is_text, chosen=answer.chosen)
            except ValueError as error:
                self._problem((*answer.path, raw), str(error), node)
                continue
            kid = answer.kid(key, kind, field)
            if key in spellings:
                self._problem(kid.path, f"said twice, as {spellings[key]!r} and as {raw!r}", node)
            spellings[key] = raw
            self.say(kid, self._translated(answer.path, field, raw, node) if field else node)

    def _choose(self, answer: ResolvedNode, blocks: Classes, node: Node) -> None:
        """A word for ``type``: what was said for another class is dropped, unless both inherit the field."""
        tag = node.content if isinstance(node.content, str) else node.text
        if not is_unset(tag) and tag not in blocks.tags:
            what = f"unknown type, expected one of {', '.join(blocks.tags)}{suggestion(tag, blocks.tags)}"
            self._problem((*answer.path, "type"), what, node)
            return
        answer.chosen = None if is_unset(tag) else blocks.members[str(tag)]
        fields = schema_of(answer.chosen or blocks.first).fields
        for name, kid in answer.kids.items():
            same = fields.get(str(name))
            if kid.field and not (same and same.owner is kid.field.owner):
                kid.end_all(f"dropped: type changed to {tag!r}", node)

    def _translated(self, path: Path, field: Field, raw: object, node: Node) -> Node:
        """A word for a former name of a field, as a word for the present one."""
        if raw == field.name:
            return node
        old, new = path_text((*path, raw)), path_text((*path, field.name))
        words = (node.spoken((*path, raw)),)
        self.renamed.append(Problem((*path, raw), f"{old!r} is now called {new!r}", words))
        transform = field.renamed[str(raw)]
        if transform is None or is_unset(node.content):
            return node
        origin = Origin(node.origin.rank, node.origin.where, f"from {old} = {node.plain()!r}")
        try:
            return Node(origin, transform(node.content))
        except CODE_ERRORS as error:
            self._problem((*path, raw), f"cannot be translated to {new!r}: {error}", node)
            return node

    def _problem(self, path: Path, what: str, node: Node) -> None:
        self.problems.append(Problem(path, what, (node.spoken(path),)))
