"""What is wrong with a configuration, in words that name the place."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass

from planner.config.origin import Origin
from planner.errors import InvalidConfigError

__all__ = ["CODE_ERRORS", "Path", "Problem", "Spoken", "invalid", "path_text", "short", "suggestion"]

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
"""What a mistake in a computing function, rule or translation raises; all of these become problems with a path."""

# One screen line, however large a hostile value is.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def short(value: object) -> str:
    """``repr`` of a value, cut to about one line."""
    return _REPR.repr(value)


def path_text(path: Path) -> str:
    """A path as a person writes it, cut to about one line."""
    text = ".".join(str(key) for key in path)
    return (text if len(text) <= 200 else f"{text[:160]}…{text[-30:]}") or "(root)"


def suggestion(name: object, known: Iterable[str]) -> str:
    """`` Did you mean …?`` for a name that is nearly one of the known ones, else nothing."""
    near = difflib.get_close_matches(str(name)[:100], list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True, slots=True)
class Spoken:
    """One value as it was said, shown below a problem."""

    path: Path
    value: object
    origin: Origin

    def __str__(self) -> str:
        return f"{path_text(self.path)} = {short(self.value)} · {self.origin}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Args:
        path: where in the configuration; empty for the whole.
        what: what is wrong, with a suggestion where there is one.
        words: the values involved, each with its origin.

    Example:
        >>> from planner.config.origin import Rank
        >>> print(Problem(("dtpe",), "unknown key", (Spoken(("dtpe",), "int8", Origin(Rank.USER, "a.yaml:1:7")),)))
        dtpe: unknown key
            dtpe = 'int8' · user · a.yaml:1:7
    """

    path: Path
    what: str
    words: tuple[Spoken, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join([f"{path_text(self.path)}: {self.what}", *map(str, self.words)])


def invalid(problems: Iterable[Problem]) -> InvalidConfigError:
    """The one error that carries all problems. Fields: ``problems`` (tuple of Problem)."""
    found = tuple(problems)
    count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
    # Hostile input can hold thousands of mistakes; all are in the field, the text stays readable.
    shown = [str(problem) for problem in found[:50]]
    more = [f"… and {len(found) - 50} more"] if len(found) > 50 else []
    return InvalidConfigError("\n".join([f"configuration: {count}", *shown, *more]), problems=found)
