"""A resolved configuration: the values, and for each the answer to where it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, cast

from planner.config.answer import Answer, Past
from planner.config.kinds import Keyed, split_path
from planner.config.layer import UNSET, Layer
from planner.config.problem import Origin, Path, Rank, path_text, suggestion
from planner.config.schema import NOTHING, Field, place_of

__all__ = ["Difference", "Resolved", "diff"]

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
    root: Answer = dataclasses.field(compare=False)  # follows from the layers
    rule_reads: Mapping[str, tuple[Path, ...]]

    @property
    def answers(self) -> dict[Path, Answer]:
        """By path, who said the value and where."""
        return {answer.path: answer for answer in self.root.walk() if answer.counts}

    @property
    def past(self) -> dict[Path, tuple[Past, ...]]:
        """By path, the words that do not count any more, the latest first."""
        return {answer.path: tuple(answer.past) for answer in self.root.walk() if answer.past}

    def origin(self, path: str | Path) -> Origin:
        """Who said the value at a path, and where.

        Raises:
            KeyError: no such path in this configuration.
        """
        return self._at(path).origin

    def explain(self, path: str | Path = ()) -> str:
        """In words: the value, who said it and where, what it shadowed, what it was made from and what reads it."""
        computed = {path_text(answer.path): answer.reads for answer in self.root.walk() if answer.reads}
        readers: dict[Path, list[str]] = {}
        for name, reads in {**computed, **self.rule_reads}.items():
            for each in reads:
                readers.setdefault(each, []).append(name)
        known = [answer for answer in self._at(path).walk() if answer.counts or answer.past]
        return "\n".join(line for answer in known for line in self._lines(answer, readers))

    def _lines(self, answer: Answer, readers: Mapping[Path, list[str]]) -> Iterator[str]:
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
        """The configuration as plain data, ready for JSON or YAML.

        Args:
            path: a block; its part stands alone, with what it computed from outside or was given by its parent.
            ranks: whose words to include; add ``Rank.IMPORTED`` for a file that needs no import.
            level: ``"said"``, or ``"all"`` for defaults, computed and derived values too.

        Guarantee:
            ``Stack(S).set(r.dump(ranks=(USER, IMPORTED))).resolve().config == r.config``, and the same for
            ``r.dump()`` on top of the same import. An imported key that the user deleted is dumped as ``UNSET``.
        """
        top = self._at(path)
        if top.shape != "block" or not top.counts:
            raise TypeError("only a block that is on can be dumped: a value means nothing without its field")
        written = _everything(top) if level == "all" else _Dump(top.path, frozenset(ranks)).below(top)
        return cast("dict[str, object]", written)

    def _at(self, path: str | Path) -> Answer:
        keys = split_path(self.root.kind, path)[0] if isinstance(path, str) and path else tuple(path)
        found: Answer | None = self.root
        for key in keys:
            found = found.below().get(key) if found else None
        if found is None or not (found.counts or found.past):
            known = [path_text(each) for each in self.answers if each]
            raise KeyError(f"no {path_text(keys)} in this configuration{suggestion(path_text(keys), known)}")
        return found


def _declared(answer: Answer, field: Field) -> Iterator[str]:
    """What the declaration of a field says: the default, where a word hides it, and whether it can be set."""
    if answer.word and answer.default is not NOTHING and not field.compute:
        yield f"    {answer.kind.write(answer.default)!r}  <- default · {answer.place}  [shadowed]"
    yield "    derived: it cannot be set" if field.derived else "    settable"


def _outcome(answer: Answer) -> str:
    """What counts in the end, and who said it."""
    if not answer.counts:
        return ": nothing counts"
    if answer.cls is not None:
        return f": {answer.cls.__name__} at {place_of(answer.cls)}  <- {answer.origin}"
    said = "" if answer.said is None else f", said as {answer.said!r}"
    return f" = {answer.written!r}  <- {answer.origin}{said}"


def _everything(answer: Answer) -> object:
    """The value, with all that is below, as plain data."""
    if answer.shape == "leaf":
        return answer.written
    return {key: _everything(kid) for key, kid in answer.below().items() if kid.counts}


@dataclass(frozen=True, slots=True)
class _Dump:
    """Which answers a dump writes: those of some ranks, and what the part lacks without the rest."""

    part: Path
    ranks: frozenset[Rank]

    def below(self, top: Answer) -> dict[object, object]:
        """What is written of a block or mapping, by key."""
        found = {key: self._one(kid) for key, kid in top.below().items()}
        is_part = bool(self.part) and top.path == self.part
        if top.tag and (is_part or any(value not in (NOTHING, UNSET) for value in found.values())):
            found["type"] = (
                top.tag
            )  # with any of its keys: the default type may be another one where it is read
        return {key: value for key, value in found.items() if value is not NOTHING}

    def _one(self, answer: Answer) -> object:
        if self._comes_back(answer):
            return UNSET
        if not answer.counts:
            return NOTHING
        is_written = self._is_written(answer)
        if answer.shape == "leaf":
            return answer.written if is_written else NOTHING
        found = self.below(answer)
        if answer.shape == "map" and self._is_whole(answer, is_written or bool(found)):
            return _everything(answer)
        return found if found or is_written else NOTHING

    def _is_written(self, answer: Answer) -> bool:
        if answer.field and answer.field.derived:
            return False
        # Without its parent, a part would compute or default these otherwise.
        from_outside = any(not self._is_inside(read) for read in answer.reads)
        by_word = answer.origin.rank in self.ranks and (answer.shape == "leaf" or answer.opened)
        return by_word or from_outside or (bool(self.part) and answer.stray)

    def _is_inside(self, path: Path) -> bool:
        return path[: len(self.part)] == self.part

    def _is_whole(self, answer: Answer, is_said: bool) -> bool:
        """Whether a mapping is written whole: because it was computed, or means something only as a whole."""
        assert isinstance(answer.kind.tree, Keyed)
        if not answer.kind.tree.whole:
            return is_said and bool(answer.reads)
        ended = (past.by.rank in self.ranks for each in answer.walk() for past in each.past)
        return is_said or any(ended)

    def _comes_back(self, answer: Answer) -> bool:
        """What the import said, the user ended, and nobody said again: it would come back on top of the import."""
        if self.part or Rank.USER not in self.ranks or Rank.IMPORTED in self.ranks:
            return False
        is_silent = answer.origin.rank <= Rank.COMPUTED if answer.counts else answer.field is None
        ended = [past for past in answer.past if past.by.rank is Rank.USER]
        return is_silent and any(past.origin.rank is Rank.IMPORTED for past in ended)


@dataclass(frozen=True, slots=True)
class Difference:
    """One path where two configurations differ; None stands for a side that does not have it."""

    path: Path
    left: Answer | None
    right: Answer | None

    def __str__(self) -> str:
        left, right = (
            "nothing" if side is None else f"{side.written!r} ({side.origin})"
            for side in (self.left, self.right)
        )
        return f"{path_text(self.path)}: {left} | {right}"


def diff(left: Resolved[T], right: Resolved[T]) -> tuple[Difference, ...]:
    """Where two configurations have different values, types of values or classes, whoever said them.

    Example:
        >>> from planner.config import Stack
        >>> from planner.config.settings import Settings
        >>> base = Stack(Settings)
        >>> [found.path for found in diff(base.resolve(), base.set(offload_buffers=True).resolve())]
        [('offload_buffers',)]
    """
    ours, theirs = left.answers, right.answers
    pairs = [(path, ours.get(path), theirs.get(path)) for path in dict.fromkeys((*ours, *theirs))]
    return tuple(Difference(path, a, b) for path, a, b in pairs if _identity(a) != _identity(b))


def _identity(answer: Answer | None) -> object:
    # repr tells 1 from 1.0 and takes nan for itself, at any depth of lists.
    return answer and (answer.shape, repr(answer.written), answer.cls)
