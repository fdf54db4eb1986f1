"""All layers, replayed lowest first into one tree of answers; no type is checked and no default applied yet."""

from __future__ import annotations

from planner.config.layer import UPDATE, Node, is_unset, unescaped
from planner.config.problem import Path, Problem, suggestion
from planner.config.resolved_node import ResolvedNode
from planner.config.types import Classes, MappingType, schema_of


class Replay:
    """Applies one layer after the other. Collects what is wrong in ``problems``."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def apply_layer(self, root: ResolvedNode, node: Node) -> None:
        """All that one layer sets. What cannot be meant for a whole configuration is wrong even where more is set on top."""
        if not isinstance(node.content, dict) and not is_unset(node.content):
            try:
                root.kind.read(root.kind.spelled_out(node))
            except ValueError as error:
                self._problem((), str(error), node)
                return
        self.apply(root, node)

    def apply(self, answer: ResolvedNode, node: Node) -> None:
        """One value, on top of what was set before."""
        if is_unset(node.content):
            answer.end_all("unset", node)
            return
        node = node.decoded()
        if node.replace:
            answer.end_all("replaced", node)
        tree, node = answer.kind.tree, answer.kind.spelled_out(node)
        if tree is None or not isinstance(node.content, dict):
            answer.end_all("shadowed", node)
            answer.current = node
            return
        if isinstance(tree, MappingType) and tree.whole and not node.partial:
            answer.end_all("replaced whole", node)
        if node.sets_any:
            answer.switch_on(node)
        self._apply_below(answer, tree, node.content, is_text=node.text_keys)

    def _apply_below(
        self, answer: ResolvedNode, tree: MappingType | Classes, values: dict[object, Node], *, is_text: bool
    ) -> None:
        if isinstance(tree, Classes) and tree.tags and "type" in values:
            self._choose(answer, tree, values["type"])
        spellings: dict[object, object] = {}
        for raw, node in values.items():
            try:
                key, kind, field = tree.child(unescaped(raw, UPDATE), is_text=is_text, chosen=answer.chosen)
            except ValueError as error:
                self._problem((*answer.path, raw), str(error), node)
                continue
            child = answer.child(key, kind, field)
            if key in spellings:
                self._problem(child.path, f"said twice, as {spellings[key]!r} and as {raw!r}", node)
            spellings[key] = raw
            self.apply(child, node)

    def _choose(self, answer: ResolvedNode, blocks: Classes, node: Node) -> None:
        """A value for ``type``: what was set for another class is dropped, unless both inherit the field."""
        tag = node.content if isinstance(node.content, str) else node.text
        if not is_unset(tag) and tag not in blocks.tags:
            what = f"unknown type, expected one of {', '.join(blocks.tags)}{suggestion(tag, blocks.tags)}"
            self._problem((*answer.path, "type"), what, node)
            return
        answer.chosen = None if is_unset(tag) else blocks.members[str(tag)]
        fields = schema_of(answer.chosen or blocks.first).fields
        for name, child in answer.children.items():
            same = fields.get(str(name))
            if child.field and not (same and same.owner is child.field.owner):
                child.end_all(f"dropped: type changed to {tag!r}", node)

    def _problem(self, path: Path, what: str, node: Node) -> None:
        self.problems.append(Problem(path, what, (node.sourced(path),)))
