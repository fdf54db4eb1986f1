"""From a dotted path to the keys it leads through; only the schema knows where a key with dots begins."""

from __future__ import annotations

from planner.config.kinds import Blocks, Keyed, Type
from planner.config.layer import Node
from planner.config.problem import Path
from planner.config.schema import Field, schema_of

__all__ = ["field_of", "split_path", "with_type"]


def field_of(blocks: Blocks, key: object) -> Field | None:
    """The field that a key means in any of the classes, by its present or a former name."""
    for cls in blocks.members.values():
        for name, field in schema_of(cls).fields.items():
            if key == name or key in field.renamed:
                return field
    return None


def split_path(kind: Type | None, text: str) -> tuple[Path, Type | None]:
    """The keys of a dotted path, and the type found there; under a mapping of leaves all that is left is one key.

    Example:
        >>> from planner.config.settings import SETTINGS
        >>> split_path(SETTINGS, "special_dtypes.model.layers.0.weight")[0]
        ('special_dtypes', 'model.layers.0.weight')
    """
    path: list[object] = []
    while kind is not None and kind.tree is not None:
        tree = kind.tree
        whole_key = isinstance(tree, Keyed) and tree.value.tree is None
        key, dot, rest = (text, "", "") if whole_key else text.partition(".")
        if isinstance(tree, Keyed):
            path.append(_canonical(tree, key))
            kind = tree.value
        else:
            path.append(key)
            field = field_of(tree, key)
            kind = field.type if field else None
        if not dot:
            return tuple(path), kind
        text = rest
    return (*path, text), None


def _canonical(tree: Keyed, key: str) -> object:
    try:
        return tree.read_key(key, is_text=True)
    except ValueError:
        return key  # resolve reports it, with its origin


def with_type(kind: Type | None, node: Node) -> Node:
    """``{type: word}`` for a plain word where a tag picks the class, unless the field itself takes such a word."""
    if kind is None or not (
        isinstance(kind.tree, Blocks) and kind.tree.tags and isinstance(node.content, str)
    ):
        return node
    try:
        kind.take(node.content)
    except ValueError:
        return Node(node.origin, {"type": node}, partial=True)
    return node
