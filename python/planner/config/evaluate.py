"""From resolved nodes to values: reads what counts, fills in defaults, computes on demand and records each read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from planner.config.frozen import FrozenMap
from planner.config.layer import UNSET, Node, SourceError, escaped, from_python
from planner.config.problem import CODE_ERRORS, Origin, Path, Problem, Rank, SourcedValue, path_text
from planner.config.replay import Replay
from planner.config.resolved_node import ResolvedNode
from planner.config.types import NOTHING, Check, Classes, Compute, Field, Type, is_constant, schema_of

_FAILED = object()


class _UnresolvedError(Exception):
    """A computation read something that has no value; the reason is already among the problems."""


class _View:
    """What a computing function sees of a block that does not exist yet: its fields and methods, read only."""

    __slots__ = ("_seen",)

    def __init__(self, evaluation: Evaluation, block: ResolvedNode, reads: dict[Path, ResolvedNode]) -> None:
        object.__setattr__(self, "_seen", (evaluation, block, block.cls, reads))

    def __getattr__(self, name: str) -> Any:
        evaluation, block, cls, reads = self._seen
        field = schema_of(cls).fields.get(name)
        if field is not None:
            return evaluation.read(block, block.field_answer(cls, field), reads)
        attribute = getattr(cls, name)
        return attribute.__get__(self) if hasattr(attribute, "__get__") else attribute

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name!r} cannot be set here: computing and checking change nothing")


class Evaluation:
    """Works out each value once. What is wrong is added to ``replay.problems``.

    Args:
        root: the tree of resolved nodes, after all layers.
        replay: puts computed values into it.
    """

    def __init__(self, root: ResolvedNode, replay: Replay) -> None:
        self.rule_reads: dict[str, tuple[Path, ...]] = {}
        self._root = root
        self._replay = replay
        self._blocks: list[tuple[ResolvedNode, type]] = []
        self._busy: list[Path] = []

    def run(self) -> Any:
        """The whole configuration; meaningless as soon as there are problems."""
        config = self._value(self._root)
        for block, cls in self._blocks:
            for name, check in schema_of(cls).rules.items():
                self._check(block, name, check)
        return config

    def read(self, block: ResolvedNode, answer: ResolvedNode, reads: dict[Path, ResolvedNode]) -> object:
        """What a view sees in a field: a view of a block that is on, or a value. Raises _UnresolvedError."""
        block.children[answer.path[-1]] = answer
        tree = answer.kind.tree
        if answer.kind.members or not isinstance(tree, Classes) or len(tree.members) > 1:
            reads[answer.path] = answer  # what can be off, or of another class, is read by being looked at
        if answer.shape == "block":
            return _View(self, answer, reads)
        value = self._value(answer, block)
        if value is _FAILED:
            raise _UnresolvedError
        return value

    def _value(self, answer: ResolvedNode, block: ResolvedNode | None = None) -> object:
        """The value of a path, worked out once; ``block`` is what it is a field of."""
        if answer.path in self._busy:
            ring = [*self._busy[self._busy.index(answer.path) :], answer.path]
            return self._fail(answer.path, f"computed from itself: {' -> '.join(map(path_text, ring))}")
        if not answer.counts:
            self._busy.append(answer.path)
            field = answer.field
            if block and field and field.compute and (answer.current is None or field.derived):
                answer.value = self._computed(answer, block, field, field.compute)
            else:
                answer.value = self._plain(answer)
            self._busy.pop()
        return answer.value

    def _plain(self, answer: ResolvedNode) -> object:
        """The value that was set, or the default."""
        cls = answer.cls
        if cls is not None:
            return self._block(answer, cls)
        if answer.shape == "map":
            values = {
                key: self._value(child) for key, child in answer.children.items() if child.current is not None
            }
            return _FAILED if _FAILED in values.values() else FrozenMap(values)
        if answer.current is not None:
            return self._given(answer, answer.current)
        if answer.default is NOTHING:
            return self._fail(answer.path, f"required, but nobody said it; expected {answer.kind}")
        return answer.default

    def _block(self, block: ResolvedNode, cls: type) -> object:
        schema, is_example = schema_of(cls), type(block.default) is cls
        self._blocks.append((block, cls))
        if schema.tag is not None:
            block.children["type"] = block.tag_answer(schema.tag)
        values = {}
        for name, field in schema.fields.items():
            default = getattr(block.default, name) if is_example else field.default
            if field.compute or name in block.children or not is_constant(default):
                child = block.children[name] = block.field_answer(cls, field)
                values[name] = self._value(child, block)
            else:
                values[name] = default  # the quick way: its node is made when it is asked for
        self._foreign(block, cls)
        return cls(**values)

    def _foreign(self, block: ResolvedNode, cls: type) -> None:
        """Keys that were set before a class was chosen, and that the class does not have after all."""
        for key, child in block.children.items():
            if child.current is not None and key != "type" and key not in schema_of(cls).fields:
                what = f"unknown key in {cls.__name__}; another type has it"
                self._fail(child.path, what, [child.current.sourced(child.path)])

    def _given(self, answer: ResolvedNode, node: Node) -> object:
        try:
            value = answer.kind.read(node)
        except ValueError as error:
            return self._fail(answer.path, str(error), [node.sourced(answer.path)])
        if node.origin.rank is Rank.IMPORTED:
            self._agree(answer, node, value)
        return value

    def _agree(self, answer: ResolvedNode, node: Node, value: object) -> None:
        """Two imports that contradict each other are an error unless the user decides: neither knows better."""
        others = [past.node for past in answer.past if past.fate == "shadowed"]
        if any(_reads_otherwise(answer.kind, other, value) for other in others):
            values = [each.sourced(answer.path) for each in (node, *others)]
            self._fail(answer.path, "imports disagree; say which one is right", values)

    def _computed(self, answer: ResolvedNode, block: ResolvedNode, field: Field, compute: Compute) -> object:
        """A computed value passes through the same exact reading as one that was set."""
        reads: dict[Path, ResolvedNode] = {}
        try:
            found = compute(_View(self, block, reads), _View(self, self._root, reads))
        except _UnresolvedError:
            return _FAILED
        except CODE_ERRORS as error:
            what = f"cannot be computed: {type(error).__name__}: {error}"
            return self._fail(answer.path, what, _sourced(reads))
        sources = ", ".join(map(path_text, reads))
        rank = Rank.DERIVED if field.derived else Rank.COMPUTED
        if field.derived and (answer.current or answer.past):
            what = f"derived from {sources or 'nothing else'}; it cannot be set"
            self._fail(answer.path, what, answer.sourced_values())
        origin = Origin(rank, field.place, f"from {sources}" if sources else "")
        answer.reads = tuple(reads)
        return self._as_given(answer, found, origin)

    def _as_given(self, answer: ResolvedNode, found: object, origin: Origin) -> object:
        try:
            node, problems = from_python(escaped(found, UNSET.value), origin)
        except SourceError as error:
            node, problems = Node(origin, UNSET), [Problem(answer.path, str(error))]
        self._replay.problems += problems
        self._replay.apply(answer, node)
        return self._plain(answer)

    def _check(self, block: ResolvedNode, name: str, check: Check) -> None:
        reads: dict[Path, ResolvedNode] = {}
        try:
            found = check(_View(self, block, reads), _View(self, self._root, reads))
            texts = [found] if isinstance(found, str) else list(found or ())
        except _UnresolvedError:
            texts = []  # what it reads is already reported
        except CODE_ERRORS as error:
            texts = [f"rule {name} failed: {type(error).__name__}: {error}"]
        self.rule_reads[path_text((*block.path, f"{name}()"))] = tuple(reads)
        for text in texts:
            self._fail(block.path, str(text), _sourced(reads))

    def _fail(self, path: Path, what: str, values: Iterable[SourcedValue] = ()) -> object:
        self._replay.problems.append(Problem(path, what, tuple(values)))
        return _FAILED


def _sourced(reads: dict[Path, ResolvedNode]) -> list[SourcedValue]:
    read = [answer for answer in reads.values() if answer.counts and answer.value is not _FAILED]
    return [SourcedValue(answer.path, answer.written, answer.origin) for answer in read]


def _reads_otherwise(kind: Type, node: Node, value: object) -> bool:
    try:
        return kind.read(node) != value
    except ValueError:
        return True
