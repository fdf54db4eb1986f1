"""From traces to values: reads the words that count, fills in defaults, computes on demand and records each read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from planner.config.frozen import FrozenMap
from planner.config.kinds import Blocks, Keyed, Type
from planner.config.layer import UNSET, Node, SourceError, from_python
from planner.config.origin import Origin, Rank
from planner.config.problem import CODE_ERRORS, Path, Problem, Spoken, path_text
from planner.config.replay import Replay, Trace
from planner.config.schema import MISSING, Field, Schema, schema_of
from planner.config.view import UnresolvedError, View

__all__ = ["Answer", "Evaluation"]

_FAILED = object()


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known about one path of a resolved configuration.

    Args:
        written: the value as plain data, as ``dump`` writes it; empty for a block or mapping that is on.
        origin: who said it and where; for a block or mapping, who switched it on.
        said: the word before it was read, where it differs from the value.
        reads: what it was computed from.
        field: its declaration, except for a key of a mapping and for ``type``.
        shape: ``leaf``, or ``block`` or ``map`` for one that is on.
        cls: for a block, the class; ``tag`` is what picks it.
        opened: whether somebody said that it is there, so that it counts even if empty.
        whole: whether a mapping means something only as a whole.
        stray: whether the default comes from an enclosing block, so that the block alone would not have it.
    """

    written: object
    origin: Origin
    said: object = None
    reads: tuple[Path, ...] = ()
    field: Field | None = None
    shape: Literal["leaf", "block", "map"] = "leaf"
    cls: type | None = None
    tag: str | None = None
    opened: bool = False
    whole: bool = False
    stray: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """One place that needs a value: its type, what was said, and the default that an enclosing block gives."""

    path: Path
    type: Type
    trace: Trace
    default: object
    where: str
    field: Field | None = None
    stray: bool = False


@dataclass(frozen=True, slots=True)
class Scope:
    """One block that is on: its class, and the instance that its fields' defaults come from, if any."""

    path: Path
    schema: Schema
    trace: Trace
    example: object
    where: str

    def slot(self, field: Field) -> Slot:
        """The place of one field."""
        default, where = field.default, ""
        if type(self.example) is self.schema.cls:
            default = getattr(self.example, field.name)
            where = self.where if default != field.default else ""
        trace = self.trace.kids.get(field.name) or Trace()
        where = where or self.schema.place(field.name)
        return Slot(
            (*self.path, field.name), field.type, trace, default, where, field, default != field.default
        )


class Evaluation:
    """Values by path, each worked out once. Collects what is wrong in ``problems``."""

    def __init__(self, kind: Type, trace: Trace, where: str) -> None:
        self.problems: list[Problem] = []
        self.answers: dict[Path, Answer] = {}
        self.scopes: dict[Path, Scope] = {}
        self.rule_reads: dict[str, tuple[Path, ...]] = {}
        self._values: dict[Path, object] = {}
        self._busy: list[Path] = []
        self._readers: list[list[Path]] = []
        self._root = Slot((), kind, trace, MISSING, where)

    def run(self) -> object:
        """The whole configuration; meaningless as soon as there are problems."""
        config = self._value(self._root)
        for scope in list(self.scopes.values()):
            for name, check in scope.schema.rules.items():
                self._check(scope, name, check)
        return config

    def read(self, scope: Scope, name: str) -> object:
        """What a view of the block sees in one field: a view of a nested block, or a value. Raises UnresolvedError."""
        slot = scope.slot(scope.schema.fields[name])
        tree = slot.type.tree
        if slot.type.members or not isinstance(tree, Blocks) or len(tree.members) > 1:
            self._readers[-1].append(
                slot.path
            )  # what can be off, or of another class, is read by being looked at
        if isinstance(tree, Blocks) and self._is_on(slot, tree):
            return View(self, self._scope(slot, tree))
        value = self._value(slot)
        if value is _FAILED:
            raise UnresolvedError(slot.path)
        return value

    def _value(self, slot: Slot) -> object:
        if slot.path in self._busy:
            ring = [*self._busy[self._busy.index(slot.path) :], slot.path]
            self._problem(slot, f"computed from itself: {' -> '.join(map(path_text, ring))}")
            return _FAILED
        if slot.path not in self._values:
            self._busy.append(slot.path)
            self._values[slot.path] = self._work_out(slot)
            self._busy.pop()
        return self._values[slot.path]

    def _work_out(self, slot: Slot) -> object:
        word = slot.trace.word
        if slot.field and slot.field.compute and (word is None or slot.field.derived):
            return self._computed(slot, slot.field)
        tree = slot.type.tree
        if tree is not None and self._is_on(slot, tree):
            return self._block(slot, tree) if isinstance(tree, Blocks) else self._keyed(slot, tree)
        if word is not None:
            return self._said(slot, word)
        if slot.default is MISSING:
            self._problem(slot, f"required, but nobody said it; expected {slot.type}")
            return _FAILED
        return self._answer(slot, slot.default, Origin(Rank.DEFAULT, slot.where))

    def _is_on(self, slot: Slot, tree: Blocks | Keyed) -> bool:
        """Whether a block or mapping is there, by a word or, if nothing is said, by default."""
        if slot.trace.word is not None:
            return isinstance(slot.trace.word.content, dict)
        if isinstance(tree, Keyed):
            return isinstance(slot.default, Mapping)
        return slot.default is MISSING or type(slot.default) in tree.members.values()

    def _said(self, slot: Slot, word: Node) -> object:
        try:
            value = slot.type.read(word)
        except ValueError as error:
            self._problem(slot, str(error), [word.spoken(slot.path)])
            return _FAILED
        self._agreed(slot, word, value)
        said = word.plain() if word.plain() != slot.type.write(value) else None
        return self._answer(slot, value, word.origin, said=said)

    def _agreed(self, slot: Slot, word: Node, value: object) -> None:
        """Two imports that contradict each other are an error unless the user decides: neither knows better."""
        rivals = [node for node, past in slot.trace.past if past.fate == "shadowed"]
        others = [node for node in rivals if node.origin.rank is word.origin.rank is Rank.IMPORTED]
        if any(_reads_otherwise(slot.type, node, value) for node in others):
            words = [node.spoken(slot.path) for node in (word, *others)]
            self._problem(slot, "imports disagree; say which one is right", words)

    def _computed(self, slot: Slot, field: Field) -> object:
        rank = Rank.DERIVED if field.derived else Rank.COMPUTED
        reads: list[Path] = []
        self._readers.append(reads)
        try:
            value = self._call(slot, field)
        except UnresolvedError:
            return _FAILED
        finally:
            self._readers.pop()
        sources = ", ".join(map(path_text, dict.fromkeys(reads)))
        origin = Origin(rank, slot.where, f"from {sources}" if sources else "")
        if field.derived and (slot.trace.word or slot.trace.past):
            words = [
                node.spoken(slot.path)
                for node in (slot.trace.word, *(node for node, _ in slot.trace.past))
                if node
            ]
            self._problem(slot, f"derived from {sources or 'nothing else'}; it cannot be set", words)
        return self._from_code(slot, value, origin, tuple(dict.fromkeys(reads)))

    def _call(self, slot: Slot, field: Field) -> object:
        assert field.compute is not None
        scope = self.scopes[slot.path[:-1]]
        try:
            return field.compute(View(self, scope), View(self, self.scopes[()]))
        except CODE_ERRORS as error:
            self._problem(
                slot, f"cannot be computed: {type(error).__name__}: {error}", self._spoken(self._readers[-1])
            )
            raise UnresolvedError(slot.path) from error

    def _from_code(self, slot: Slot, value: object, origin: Origin, reads: tuple[Path, ...]) -> object:
        """A computed value passes through the same exact reading as a word."""
        trace, replay = Trace(), Replay()
        try:
            node, problems = from_python(value, origin)
        except SourceError as error:
            node, problems = Node(origin, UNSET), [Problem(slot.path, str(error))]
        replay.say(slot.path, slot.type, node, trace)
        self.problems += [*problems, *replay.problems]
        read = self._work_out(replace(slot, trace=trace, field=None))
        if slot.path in self.answers:
            self.answers[slot.path] = replace(self.answers[slot.path], reads=reads, field=slot.field)
        return read

    def _keyed(self, slot: Slot, tree: Keyed) -> object:
        word = slot.trace.word
        origin = word.origin if word else Origin(Rank.DEFAULT, slot.where)
        opened = word is not None and (not word.partial or bool(slot.type.members))
        self.answers[slot.path] = Answer(
            {}, origin, field=slot.field, shape="map", opened=opened, whole=tree.whole, stray=slot.stray
        )
        kids = {key: kid for key, kid in slot.trace.kids.items() if kid.word is not None}
        values = {
            key: self._value(Slot((*slot.path, key), tree.value, kid, MISSING, ""))
            for key, kid in kids.items()
        }
        return _FAILED if _FAILED in values.values() else FrozenMap(values)

    def _scope(self, slot: Slot, tree: Blocks) -> Scope:
        if slot.path not in self.scopes:
            schema = schema_of(slot.trace.chosen or tree.first)
            self.scopes[slot.path] = Scope(slot.path, schema, slot.trace, slot.default, slot.where)
        return self.scopes[slot.path]

    def _block(self, slot: Slot, tree: Blocks) -> object:
        scope = self._scope(slot, tree)
        word, cls, tag = slot.trace.word, scope.schema.cls, scope.schema.tag
        origin = word.origin if word else Origin(Rank.DEFAULT, slot.where)
        opened = word is not None and (slot.field is None or bool(slot.type.members))
        self.answers[slot.path] = Answer(
            {}, origin, field=slot.field, shape="block", cls=cls, tag=tag, opened=opened, stray=slot.stray
        )
        if tag is not None:
            self._tag(slot, tag)
        values: dict[str, object] = {}
        for name, field in scope.schema.fields.items():
            values[name], path = self._value(scope.slot(field)), (*slot.path, name)
            if path in self.answers and self.answers[path].shape == "leaf":
                self.answers[path] = self.answers.pop(path)  # in the order of the class, not of the computing
        self._foreign(scope)
        return _FAILED if _FAILED in values.values() else cls(**values)

    def _tag(self, slot: Slot, tag: str) -> None:
        kid = slot.trace.kids.get("type")
        origin = kid.word.origin if kid and kid.word else Origin(Rank.DEFAULT, slot.where)
        self.answers[(*slot.path, "type")] = Answer(tag, origin, stray=slot.stray)

    def _foreign(self, scope: Scope) -> None:
        """Keys that were said before anybody chose a class and that the class does not have after all."""
        for name, kid in scope.trace.kids.items():
            if kid.word is not None and name != "type" and name not in scope.schema.fields:
                path, what = (
                    (*scope.path, name),
                    f"unknown key in {scope.schema.cls.__name__}; another type has it",
                )
                self.problems.append(Problem(path, what, (kid.word.spoken(path),)))

    def _answer(self, slot: Slot, value: object, origin: Origin, said: object = None) -> object:
        written = slot.type.write(value)
        self.answers[slot.path] = Answer(written, origin, said, field=slot.field, stray=slot.stray)
        return value

    def _check(self, scope: Scope, name: str, check: object) -> None:
        assert callable(check)
        reads: list[Path] = []
        self._readers.append(reads)
        try:
            found = check(View(self, scope), View(self, self.scopes[()]))
            texts = [found] if isinstance(found, str) else list(found or ())
        except UnresolvedError:
            texts = []  # what it reads is already reported
        except CODE_ERRORS as error:
            texts = [f"rule {name} failed: {type(error).__name__}: {error}"]
        finally:
            self._readers.pop()
        self.rule_reads[path_text((*scope.path, f"{name}()"))] = tuple(dict.fromkeys(reads))
        self.problems += [Problem(scope.path, str(text), tuple(self._spoken(reads))) for text in texts]

    def _spoken(self, reads: list[Path]) -> Iterator[Spoken]:
        for path in dict.fromkeys(reads):
            if path in self.answers:
                yield Spoken(path, self.answers[path].written, self.answers[path].origin)

    def _problem(self, slot: Slot, what: str, words: Iterable[Spoken] = ()) -> None:
        self.problems.append(Problem(slot.path, what, tuple(words)))


def _reads_otherwise(kind: Type, node: Node, value: object) -> bool:
    try:
        return kind.read(node) != value
    except ValueError:
        return True
