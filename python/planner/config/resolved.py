"""A resolved configuration: the values, and for each where it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, cast

from planner.config.layer import UNSET, UPDATE, Layer, escaped
from planner.config.problem import Origin, Path, Rank, path_text, suggestion
from planner.config.resolved_node import ResolvedNode, Superseded
from planner.config.types import NOTHING, Field, MappingType, place_of, schema_of, split_path
from planner.config.written import yaml_lines

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved(Generic[T]):
    """The result of ``Stack.resolve``; nothing changes it afterwards.

    Args:
        config: the values, as a frozen instance of the schema's class.
        layers: what it was resolved from, lowest first.
        root: what is known of each path, as a tree.
        rule_reads: by rule, what it read.
    """

    config: T
    layers: tuple[Layer, ...]
    root: ResolvedNode = dataclasses.field(compare=False)  # follows from the layers
    rule_reads: Mapping[str, tuple[Path, ...]]

    @property
    def answers(self) -> dict[Path, ResolvedNode]:
        """By path, what is known of each value that counts."""
        return {answer.path: answer for answer in self.root.walk() if answer.counts}

    @property
    def past(self) -> dict[Path, tuple[Superseded, ...]]:
        """By path, the values that do not count any more, the latest first."""
        return {answer.path: tuple(answer.past) for answer in self.root.walk() if answer.past}

    def origin(self, path: str | Path) -> Origin:
        """What set the value at a path, and where.

        Raises:
            KeyError: no such path in this configuration.
        """
        return self._at(path).origin

    def explain(self, path: str | Path = ()) -> str:
        """As text: the value, what set it and where, what it shadowed, what it was made from and what reads it."""
        computed = {path_text(answer.path): answer.reads for answer in self.root.walk() if answer.reads}
        readers: dict[Path, list[str]] = {}
        for name, reads in {**computed, **self.rule_reads}.items():
            for each in reads:
                readers.setdefault(each, []).append(name)
        known = [answer for answer in self._at(path).walk() if answer.counts or answer.past]
        return "\n".join(line for answer in known for line in self._lines(answer, readers))

    def _lines(self, answer: ResolvedNode, readers: Mapping[Path, list[str]]) -> Iterator[str]:
        yield f"{path_text(answer.path)}{_outcome(answer)}"
        yield from (f"    {past}" for past in answer.past if not isinstance(past.value, dict))
        for read in map(self._at, answer.reads):
            yield f"    reads {path_text(read.path)} = {read.written!r}  <- {read.origin}"
        if answer.field and answer.shape == "leaf" and answer.counts:
            yield from _declared(answer, answer.field)
        if answer.path in readers:
            yield f"    read by {', '.join(readers[answer.path])}"

    def dump(
        self,
        path: str | Path = (),
        *,
        ranks: Iterable[Rank] = (Rank.USER,),
        level: Literal["said", "all"] = "said",
    ) -> dict[str, object]:
        """The configuration as plain data, ready for JSON or YAML: dicts and lists of null, bools, numbers and texts.

        Args:
            path: a block; its part stands alone, with what it computed from outside or was given by its parent.
            ranks: whose values to include; add ``Rank.IMPORTED`` for a file that needs no import.
            level: ``"said"``, or ``"all"`` for defaults, computed and derived values too.

        Guarantee:
            ``Stack(S).set(r.dump(ranks=(USER, IMPORTED))).resolve().config == r.config``, and the same for
            ``r.dump()`` on top of the same import. An imported key that the user deleted is dumped as "!unset", which is
            ``UNSET``. Where single keys were set of a mapping that means something only as a whole, the key "!update"
            stands with them. A text that looks like one of these has one more exclamation mark, as "!!unset".
        """
        top = self._at(path)
        if top.shape != "block" or not top.counts:
            raise TypeError("only a block that is on can be dumped: a value means nothing without its field")
        written = _everything(top) if level == "all" else _Dump(top.path, frozenset(ranks)).below(top)
        return cast("dict[str, object]", written)

    def yaml(self, *, ranks: Iterable[Rank] = (Rank.USER,), level: Literal["said", "all"] = "said") -> str:
        """:meth:`dump` as a YAML file that means the same, each value with its origin as a comment; empty if nothing is set."""
        return "\n".join(yaml_lines(self.dump(ranks=ranks, level=level), self.origin_text))

    def origin_text(self, path: str | Path) -> str:
        """The origin of the value at a path as text, or what unset the value there."""
        answer = self._at(path)
        is_unset = answer.current is None and answer.past
        return f"{answer.past[0].fate} by {answer.past[0].by}" if is_unset else str(answer.origin)

    def _at(self, path: str | Path) -> ResolvedNode:
        keys = split_path(self.root.kind, path)[0] if isinstance(path, str) and path else tuple(path)
        found: ResolvedNode | None = self.root
        for key in keys:
            found = found.plain_child(key) if found else None
        if found is None or not (found.counts or found.past):
            known = [path_text(each) for each in self.answers if each]
            raise KeyError(f"no {path_text(keys)} in this configuration{suggestion(path_text(keys), known)}")
        return found


def _declared(answer: ResolvedNode, field: Field) -> Iterator[str]:
    """What the declaration of a field tells: the default, where it is hidden, and whether it can be set."""
    if answer.current and answer.default is not NOTHING and not field.compute:
        yield f"    {answer.kind.write(answer.default)!r}  <- default · {answer.place}  [shadowed]"
    yield "    derived: it cannot be set" if field.derived else "    settable"


def _outcome(answer: ResolvedNode) -> str:
    """What counts in the end, and what set it."""
    if not answer.counts:
        return ": nothing counts"
    if answer.cls is not None:
        return f": {answer.cls.__name__} at {place_of(answer.cls)}  <- {answer.origin}"
    raw = "" if answer.raw is None else f", said as {answer.raw!r}"
    return f" = {answer.written!r}  <- {answer.origin}{raw}"


def _everything(answer: ResolvedNode) -> object:
    """The value, with all that is below, as plain data."""
    if answer.shape == "leaf":
        return _plain(answer.written)
    return {
        answer.plain_key(key): _everything(child) for key, child in answer.below().items() if child.counts
    }


def _of_class(block: ResolvedNode, found: dict[object, object]) -> dict[object, object]:
    """What is written of a block with its type, and with it alone: the default type may be another one where it is read.

    Choosing a type drops the keys of all others, so these need no value.
    """
    fields = schema_of(block.cls).fields if block.cls else {}
    return {key: value for key, value in found.items() if key in fields} | {"type": block.tag}


def _plain(written: object) -> object:
    return escaped(written, UNSET.value)


@dataclass(frozen=True, slots=True)
class _Dump:
    """Which answers a dump writes: those of some ranks, and what the part lacks without the rest."""

    part: Path
    ranks: frozenset[Rank]

    def below(self, top: ResolvedNode) -> dict[object, object]:
        """What is written of a block or mapping, by key."""
        found = {key: self._one(child) for key, child in top.below().items()}
        is_part = bool(self.part) and top.path == self.part
        if top.tag and (is_part or any(value not in (NOTHING, UNSET) for value in found.values())):
            found = _of_class(top, found)
        return {top.plain_key(key): value for key, value in found.items() if value is not NOTHING}

    def _one(self, answer: ResolvedNode) -> object:
        if self._comes_back(answer):
            return UNSET.value
        if not answer.counts:
            return NOTHING
        is_written = self._is_written(answer)
        if answer.shape == "leaf":
            return _plain(answer.written) if is_written else NOTHING
        found = self.below(answer)
        if not found and not is_written:
            return NOTHING
        return self._mapping(answer, answer.kind.tree, found) if answer.shape == "map" else found

    def _mapping(self, answer: ResolvedNode, tree: object, found: dict[object, object]) -> object:
        """What is written of a mapping: all of it where it was computed or set as a whole, else the keys that were set."""
        assert isinstance(tree, MappingType)
        if self._is_whole(answer) if tree.whole else answer.reads:
            return _everything(answer)
        return {UPDATE: True, **found} if tree.whole else found

    def _is_written(self, answer: ResolvedNode) -> bool:
        if answer.field and answer.field.derived:
            return False
        # Without its parent, a part would compute or default these otherwise.
        from_outside = any(not self._is_inside(read) for read in answer.reads)
        by_word = answer.origin.rank in self.ranks and (answer.shape == "leaf" or answer.opened)
        return by_word or from_outside or (bool(self.part) and answer.is_inherited_default)

    def _is_inside(self, path: Path) -> bool:
        return path[: len(self.part)] == self.part

    def _is_whole(self, answer: ResolvedNode) -> bool:
        """Whether a mapping that means something as a whole was set, or ended, as a whole; else single keys were."""
        nodes = [*([answer.current] if answer.current else []), *(past.node for past in answer.past)]
        is_set = any(node.origin.rank in self.ranks and not node.partial for node in nodes)
        is_ended = any(past.by.rank in self.ranks and past.fate != "shadowed" for past in answer.past)
        return is_set or is_ended or bool(answer.reads)

    def _comes_back(self, answer: ResolvedNode) -> bool:
        """What the import set, the user ended, and was not set again: it would come back on top of the import."""
        if self.part or Rank.USER not in self.ranks or Rank.IMPORTED in self.ranks:
            return False
        is_silent = answer.origin.rank <= Rank.COMPUTED or not answer.counts
        ended = [past for past in answer.past if past.by.rank is Rank.USER]
        return is_silent and any(past.origin.rank is Rank.IMPORTED for past in ended)


@dataclass(frozen=True, slots=True)
class Difference:
    """One path where two configurations differ; None stands for a side that does not have it."""

    path: Path
    left: ResolvedNode | None
    right: ResolvedNode | None

    def __str__(self) -> str:
        left, right = (
            "nothing" if side is None else f"{side.written!r} ({side.origin})"
            for side in (self.left, self.right)
        )
        return f"{path_text(self.path)}: {left} | {right}"


def diff(left: Resolved[T], right: Resolved[T]) -> tuple[Difference, ...]:
    """Where two configurations have different values, types of values or classes, whatever set them.

    Example:
        >>> from planner.config import Stack
        >>> from planner.settings.schema import Settings
        >>> base = Stack(Settings)
        >>> [found.path for found in diff(base.resolve(), base.set(offload_buffers=True).resolve())]
        [('offload_buffers',)]
    """
    ours, theirs = left.answers, right.answers
    pairs = [(path, ours.get(path), theirs.get(path)) for path in dict.fromkeys((*ours, *theirs))]
    return tuple(Difference(path, a, b) for path, a, b in pairs if _identity(a) != _identity(b))


def _identity(answer: ResolvedNode | None) -> object:
    # repr tells 1 from 1.0 and takes nan for itself, at any depth of lists.
    return answer and (answer.shape, repr(answer.written), answer.cls)
