"""Every name of a model, told once for modules that look alike, so that a plan can carry them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import islice
from typing import Any, Final, TypeAlias

from planner.names import qualified

__all__ = ["KnownNames", "NameKind"]

NUMBERED: Final = "."
"""In plain data, the key of numbered members; no name has a dot."""

_RANGES: Final = re.compile(
    r"(?:0|[1-9][0-9]{0,17})(?:-[1-9][0-9]{0,17})?(?:,[1-9][0-9]{0,17}(?:-[1-9][0-9]{0,17})?)*"
)
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_MOST_PLACES: Final = 2_000  # modules that a wrong name is tried in
_MOST_PARTS: Final = 32
_MOST_WAYS: Final = 8  # of correcting a name inside one module
_MOST_ALIKE: Final = 3
_LEAST_BEGUN: Final = 3  # characters
_DIGITS: Final = re.compile(r"[0-9]{1,18}")
_ALIKE: Final = 0.6  # of two names, as difflib has it
_NEARLY: Final = 0.2  # as likely as the best

# By kind and part of a name, members that are like it, with how much.
_Alike: TypeAlias = dict[tuple[int, str], list[tuple[str, int, float]]]


@dataclass(frozen=True, slots=True)
class NameKind:
    """What modules of one kind hold.

    Args:
        named: by name of a member, the number of its kind.
        numbered: ranges of numbers, both ends included, with the number of their members' kind.
    """

    named: Mapping[str, int]
    numbered: tuple[tuple[tuple[range, ...], int], ...]

    def member(self, part: str) -> int | None:
        """The kind of a member; None where there is none of that name."""
        if part in self.named:
            return self.named[part]
        if not _NUMBER.fullmatch(part):
            return None
        number = int(part)
        return next((kind for spans, kind in self.numbered if any(number in span for span in spans)), None)

    def nearest_number(self, number: int) -> tuple[str, int] | None:
        """The numbered member nearest to a number, and its kind."""
        ends = (
            (abs(near - number), near, kind)
            for spans, kind in self.numbered
            for span in spans
            for near in (min(max(number, span.start), span.stop - 1),)
        )
        best = min(ends, default=None)
        return None if best is None else (str(best[1]), best[2])

    def alike(self, part: str) -> list[tuple[str, int]]:
        """Members whose names are most like one that is not there, whatever their case, or begin with it."""
        folded, own = {name.lower(): name for name in self.named}, part.lower()
        begun = [each for each in folded if len(own) >= _LEAST_BEGUN and each.startswith(own)]
        found = dict.fromkeys(
            (*difflib.get_close_matches(own, folded, _MOST_ALIKE, _ALIKE), *begun[:_MOST_ALIKE])
        )
        near = self.nearest_number(int(part)) if _NUMBER.fullmatch(part) else None
        named = [(folded[each], self.named[folded[each]]) for each in found]
        return named if near is None else [near, *named]

    def anything(self, part: str) -> list[str]:
        """What there is where nothing is like a name: the nearest names, or the number that is in it."""
        nearest = difflib.get_close_matches(part, self.named, _MOST_ALIKE, 0.0)
        number = _DIGITS.search(part)
        near = self.nearest_number(int(number[0]) if number else 0)
        return nearest if near is None else [near[0], *nearest]

    def examples(self) -> Iterator[tuple[str, int]]:
        """Each member, but of numbered ones that look alike only the first."""
        yield from self.named.items()
        yield from ((str(spans[0].start), kind) for spans, kind in self.numbered if spans)


@dataclass(frozen=True, slots=True)
class KnownNames:
    """The names of all modules and tensors of a model; none, where they are not known.

    Args:
        kinds: members are of kinds before their own; the model is of the last.

    Example:
        >>> names = KnownNames.of([([], []), ([("w", 0)], []), ([("head", 1)], [("0-79", 1)])])
        >>> "79.w" in names, "80.w" in names, names.nearest("haed")
        (True, False, ('head',))
    """

    kinds: tuple[NameKind, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[tuple[Iterable[tuple[str, int]], Iterable[tuple[str, int]]]]) -> KnownNames:
        """From kinds as a tree has them: named members, and numbered ones by ranges such as "0-2,5"."""
        return cls(
            tuple(
                NameKind(dict(named), tuple((_spans(text), kind) for text, kind in numbered))
                for named, numbered in rows
            )
        )

    @classmethod
    def read(cls, rows: Any) -> KnownNames:
        """From plain data. Raises TypeError or ValueError for anything but what :meth:`plain` writes."""
        if not isinstance(rows, list):
            raise TypeError("names must be a list of kinds")
        return cls(tuple(_read_kind(row, number) for number, row in enumerate(rows)))

    def plain(self) -> list[dict[str, Any]]:
        """As plain data: a kind for each row, and numbered members below the key "."."""
        rows: list[dict[str, Any]] = []
        for kind in self.kinds:
            row: dict[str, Any] = dict(kind.named)
            if kind.numbered:
                row[NUMBERED] = {_ranges(spans): member for spans, member in kind.numbered}
            rows.append(row)
        return rows

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or not self.kinds:
            return False
        kind = len(self.kinds) - 1
        for part in name.split(".") if name else ():
            inner = self.kinds[kind].member(part)
            if inner is None:
                return False
            kind = inner
        return True

    def __iter__(self) -> Iterator[str]:
        """All names, "" first, each before what is inside."""
        pending = [("", len(self.kinds) - 1)] if self.kinds else []
        while pending:
            name, kind = pending.pop()
            yield name
            inner = self.kinds[kind]
            numbers = (
                (str(number), each) for spans, each in inner.numbered for span in spans for number in span
            )
            pending.extend((qualified(name, part), each) for part, each in (*inner.named.items(), *numbers))

    def nearest(self, name: str, most: int = 3) -> tuple[str, ...]:
        """Names that may have been meant by one that is not there: those that end with it, then those that look like it, and
        where a name is right up to some part, what is there instead.

        Cost: O(kinds · depth) comparisons of parts, however many modules are alike.
        """
        parts = name.split(".")
        if not name or len(parts) > _MOST_PARTS:
            return ()
        found: dict[str, float] = {}
        known: _Alike = {}
        for place, kind in islice(self._places(), _MOST_PLACES):
            for near, likeness in self._corrected(place, kind, parts, known):
                found[near] = max(likeness, found.get(near, 0.0))
        best = max(found.values(), default=0.0)
        nearest = sorted(found, key=lambda near: (-found[near], near.count("."), near))
        return tuple(each for each in nearest if found[each] > best - _NEARLY)[:most]

    def _places(self) -> Iterator[tuple[str, int]]:
        """Modules with what they look like inside, outer ones first; of numbered ones that look alike only the first."""
        level = [("", len(self.kinds) - 1)] if self.kinds else []
        while level:
            yield from level
            level = [
                (qualified(name, part), each)
                for name, kind in level
                for part, each in self.kinds[kind].examples()
            ]

    def _corrected(
        self, place: str, kind: int, parts: Sequence[str], known: _Alike
    ) -> Iterator[tuple[str, float]]:
        """What a name may be inside of a module, with how much of it is right."""
        ways = [(0.0, place, kind)]
        for depth, part in enumerate(parts):
            further: list[tuple[float, str, int]] = []
            for likeness, near, at in ways:
                inner = self.kinds[at]
                exact = inner.member(part)
                if exact is not None:
                    further.append((likeness + 1, qualified(near, part), exact))
                    continue
                if (at, part) not in known:
                    known[at, part] = [
                        (other, each, _ratio(part, other)) for other, each in inner.alike(part)
                    ]
                others = known[at, part]
                if not others and depth:  # what is there instead, or nothing is, inside of a tensor
                    instead = [qualified(near, other) for other in inner.anything(part)] or [near]
                    yield from ((each, likeness / len(parts)) for each in instead)
                further.extend(
                    (likeness + ratio, qualified(near, other), each) for other, each, ratio in others
                )
            ways = nlargest(_MOST_WAYS, further, key=lambda way: way[0])
        yield from ((near, likeness / len(parts)) for likeness, near, _ in ways)


def _ratio(part: str, other: str) -> float:
    return difflib.SequenceMatcher(None, part.lower(), other.lower()).ratio()


def _read_kind(row: Any, number: int) -> NameKind:
    if not isinstance(row, dict):
        raise TypeError("a kind of names must be an object")
    numbered = row.get(NUMBERED, {})
    named = {name: kind for name, kind in row.items() if name != NUMBERED}
    if not isinstance(numbered, dict) or not all(map(_RANGES.fullmatch, numbered)):
        raise TypeError("numbered members must be an object of ranges")
    if any(type(kind) is not int or not 0 <= kind < number for kind in (*named.values(), *numbered.values())):
        raise ValueError("a member must be of a kind before its own")
    return NameKind(named, tuple((_spans(text), kind) for text, kind in numbered.items()))


def _spans(text: str) -> tuple[range, ...]:
    """Ranges from a text. Raises ValueError for one without a number.

    Example:
        >>> _spans("0-2,5")
        (range(0, 3), range(5, 6))
    """
    ends = (span.partition("-") for span in text.split(","))
    spans = tuple(range(int(first), int(last or first) + 1) for first, _, last in ends)
    if not all(spans):
        raise ValueError(f"a range ends before it begins: {text[:80]!r}")
    return spans


def _ranges(spans: Iterable[range]) -> str:
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in spans)
