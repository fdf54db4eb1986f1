"""Where a value was set, with which authority, and what is wrong with it, with the name of the place."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable
from dataclasses import dataclass

from planner.errors import InvalidConfigError
from planner.names import counted
from planner.spelling import one_line, shown

Path = tuple[object, ...]

CODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a mistake in a computing function or rule raises; all of these become problems with a path."""


def path_text(path: Path) -> str:
    """A path as a person writes it, cut to about one line."""
    # Whatever was a mapping's key can be in a path; of torch's devices the text is the name.
    is_name = (isinstance(key, str) or type(key).__name__ == "device" for key in path)
    parts = (str(key) if named else shown(key) for key, named in zip(path, is_name, strict=True))
    text = one_line(".".join(parts))
    return (text if len(text) <= 200 else f"{text[:160]}…{text[-30:]}") or "(root)"


def suggestion(name: object, known: Iterable[str]) -> str:
    """`` Did you mean …?`` for a name that is nearly one of the known ones, else nothing."""
    near = difflib.get_close_matches((name if isinstance(name, str) else shown(name))[:100], list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


class Rank(enum.IntEnum):
    """What set a value. A higher rank wins; a derived value has no rival, since it cannot be set."""

    DEFAULT = 0
    COMPUTED = 1
    IMPORTED = 2
    USER = 3
    DERIVED = 4


class UserSource(enum.IntEnum):
    """In which way the user set it. Within the rank ``USER`` a higher place wins."""

    FILE = 0
    ENVIRONMENT = 1
    ARGUMENTS = 2
    KEYWORDS = 3


@dataclass(frozen=True, slots=True)
class Origin:
    """One place where a value was set.

    Args:
        rank: what set it.
        where: the place as text: ``plan.yaml:3:12``, ``environment PLANNER_DTYPE``, ``settings.py:40``.
        note: what it was translated or computed from, if it was.
        is_written: whether a person wrote it, in a file, a variable or on the command line; code computes what it sets.

    Example:
        >>> str(Origin(Rank.IMPORTED, "config.json:4", "from n_layer = 12"))
        'imported · config.json:4 (from n_layer = 12)'
    """

    rank: Rank
    where: str
    note: str = ""
    is_written: bool = False

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return one_line(f"{self.rank.name.lower()} · {self.where}{note}")


@dataclass(frozen=True, slots=True)
class SourcedValue:
    """One value as it was set, shown below a problem."""

    path: Path
    value: object
    origin: Origin

    def __str__(self) -> str:
        return f"{path_text(self.path)} = {shown(self.value)} · {self.origin}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Args:
        path: where in the configuration; empty for the whole.
        what: what is wrong, with a suggestion where there is one.
        words: the values involved, each with its origin.

    Example:
        >>> print(Problem(("dtpe",), "unknown key", (SourcedValue(("dtpe",), "int8", Origin(Rank.USER, "a.yaml:1:7")),)))
        dtpe: unknown key
            dtpe = 'int8' · user · a.yaml:1:7
    """

    path: Path
    what: str
    words: tuple[SourcedValue, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join([f"{path_text(self.path)}: {self.what}", *map(str, self.words)])


def invalid(problems: Iterable[Problem]) -> InvalidConfigError:
    """The one error that carries all problems. Fields: ``problems`` (tuple of Problem)."""
    found = tuple(problems)
    count = counted(len(found), "problem")
    # Hostile input can hold thousands of mistakes; all are in the field, the text stays readable.
    first = [str(problem) for problem in found[:50]]
    more = [f"… and {len(found) - 50} more"] if len(found) > 50 else []
    return InvalidConfigError("\n".join([f"configuration: {count}", *first, *more]), problems=found)
