"""A resolved configuration: the values, and for each the answer to where it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from planner.config import dumping, explaining
from planner.config.evaluate import Answer
from planner.config.kinds import Type
from planner.config.layer import Layer
from planner.config.origin import Origin, Rank
from planner.config.paths import split_path
from planner.config.problem import Path, path_text, suggestion
from planner.config.replay import Past

__all__ = ["Difference", "Resolved", "diff"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved(Generic[T]):
    """The result of ``Stack.resolve``; nothing changes it afterwards.

    Args:
        config: the values, as a frozen instance of the schema's class.
        layers: what it was resolved from, lowest first.
        answers: by path, who said the value and where.
        past: by path, the words that do not count any more, the latest first.
        readers: by path, which computed fields and rules read it.
    """

    config: T
    kind: Type
    layers: tuple[Layer, ...]
    answers: Mapping[Path, Answer]
    past: Mapping[Path, tuple[Past, ...]]
    readers: Mapping[Path, tuple[str, ...]]

    def origin(self, path: str | Path) -> Origin:
        """Who said the value at a path, and where.

        Raises:
            KeyError: no such path in this configuration.
        """
        return self.answers[self._known(path)].origin

    def explain(self, path: str | Path = ()) -> str:
        """In words: the value, who said it and where, what it shadowed, what it was made from and what reads it."""
        return explaining.explain(self, self._known(path))

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
        return dumping.dump(self, self._known(path), frozenset(ranks), level == "all")

    def _known(self, path: str | Path) -> Path:
        keys = split_path(self.kind, path)[0] if isinstance(path, str) and path else tuple(path)
        if keys not in self.answers and keys not in self.past:
            known = [path_text(each) for each in self.answers if each]
            raise KeyError(f"no {path_text(keys)} in this configuration{suggestion(path_text(keys), known)}")
        return keys


@dataclass(frozen=True, slots=True)
class Difference:
    """One path where two configurations differ; None stands for a side that does not have it."""

    path: Path
    left: Answer | None
    right: Answer | None

    def __str__(self) -> str:
        return f"{path_text(self.path)}: {_side(self.left)} | {_side(self.right)}"


def _side(answer: Answer | None) -> str:
    return "nothing" if answer is None else f"{answer.written!r} ({answer.origin})"


def diff(left: Resolved[T], right: Resolved[T]) -> tuple[Difference, ...]:
    """Where two configurations have different values, types of values or classes, whoever said them.

    Example:
        >>> from planner.config import Stack
        >>> from planner.config.settings import Settings
        >>> base = Stack(Settings)
        >>> [found.path for found in diff(base.resolve(), base.set(offload_buffers=True).resolve())]
        [('offload_buffers',)]
    """
    paths = dict.fromkeys((*left.answers, *right.answers))
    pairs = [(path, left.answers.get(path), right.answers.get(path)) for path in paths]
    return tuple(Difference(path, a, b) for path, a, b in pairs if _identity(a) != _identity(b))


def _identity(answer: Answer | None) -> object:
    # repr tells 1 from 1.0 and takes nan for itself, at any depth of lists.
    return answer and (answer.shape, repr(answer.written), answer.cls)
