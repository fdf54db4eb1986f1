"""The one way to make a configuration: put layers on a stack, then resolve it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from planner.config.command import argument_layers, environment_layers, option_layer
from planner.config.evaluate import Evaluation
from planner.config.files import FilePath, file_layer
from planner.config.kinds import Type, parse_type
from planner.config.layer import UNSET, Layer, Node, SourceError, from_python
from planner.config.origin import Origin, Place, Rank
from planner.config.problem import Path, Problem, invalid, path_text
from planner.config.replay import Replay, Trace
from planner.config.resolved import Resolved

__all__ = ["Stack"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, init=False)
class Stack(Generic[T]):
    """Layers over a schema. Every method returns a new stack; nothing is read or checked before it is asked for.

    Args:
        schema: a ``@config`` class, or a union of tagged ones.

    Guarantee:
        The order of precedence is fixed, whatever the order of calls: imported < files < environment < command line
        < keywords; within one of these the later call wins.

    Example:
        >>> from planner.config.settings import Settings
        >>> stack = Stack(Settings).set(strategy="balanced", max_memory={0: "10GiB"})
        >>> stack.resolve().config.max_memory[0]
        10737418240
    """

    schema: Any
    kind: Type
    layers: tuple[Layer, ...]

    def __init__(self, schema: type[T] | Any, layers: tuple[Layer, ...] = ()) -> None:
        ordered = sorted(layers, key=lambda layer: (layer.rank, layer.place))
        object.__setattr__(self, "schema", schema)
        object.__setattr__(self, "kind", parse_type(schema))
        object.__setattr__(self, "layers", tuple(ordered))

    def push(self, *layers: Layer) -> Stack[T]:
        """This stack with more layers, each above all others of its rank and place."""
        return Stack(self.schema, (*self.layers, *layers))

    def imported(self, words: Mapping[Any, object] | Layer) -> Stack[T]:
        """Words from elsewhere that were translated to this schema: above defaults, below all that the user says."""
        return self.push(words if isinstance(words, Layer) else _python_layer(words, Rank.IMPORTED))

    def file(self, path: FilePath) -> Stack[T]:
        """A YAML, TOML or JSON file, read now."""
        return self.push(file_layer(path))

    def environment(self, environ: Mapping[str, str], *, prefix: str = "PLANNER_") -> Stack[T]:
        """Variables with a prefix, ``__`` for nesting, in any case; ``{prefix}CONFIG`` names a file."""
        return self.push(*environment_layers(self.kind, environ, prefix))

    def arguments(self, argv: Sequence[str], *, first: int = 1) -> Stack[T]:
        """Command line options: ``--set a.b=c``, ``--set a.b:={…}``, ``--unset a.b``, ``--config FILE``.

        Args:
            argv: the options.
            first: the number of the first one, where others stood before it.
        """
        return self.push(*argument_layers(self.kind, argv, first))

    def option(self, path: str, value: object, spelled: str, *, number: int = 1) -> Stack[T]:
        """One command line option of its own for a setting, as ``-d 0=80GiB`` is for ``max_memory``.

        Args:
            path: dotted, as after ``--set``.
            value: text, read as after ``--set``; or a list or mapping of such texts.
            spelled: the option as the user wrote it.
            number: its place among the options.
        """
        return self.push(option_layer(self.kind, path, value, spelled, number))

    def set(self, words: Mapping[Any, object] | None = None, /, **keywords: object) -> Stack[T]:
        """Values from code: nested mappings, tuples as paths, keywords; ``UNSET`` deletes, ``Replace`` replaces."""
        more = [] if words is None else [_python_layer(words, Rank.USER)]
        return self.push(*more, *([_python_layer(keywords, Rank.USER)] if keywords else []))

    def unset(self, path: Path) -> Stack[T]:
        """Forgets what all layers so far say at a path."""
        return self.set({path: UNSET})

    def update(self, other: Stack[T] | Resolved[T] | Mapping[Any, object]) -> Stack[T]:
        """The words that the user said in another configuration, above all that was said here.

        Neither its defaults nor its imports come along. An instance of the schema is refused by ``resolve``, since
        nobody can tell which of its values were meant.
        """
        if not isinstance(other, (Stack, Resolved)):
            return self.set(other)
        words = [layer for layer in other.layers if layer.rank is Rank.USER]
        return self.push(*(replace(layer, place=Place.KEYWORDS) for layer in words))

    def resolve(self) -> Resolved[T]:
        """The configuration that these layers mean.

        Raises:
            InvalidConfigError: with all problems at once. Fields: ``problems``.

        Guarantee:
            Pure: the same layers give an equal result, and nothing is changed or read. Old names of fields are
            reported as a DeprecationWarning.

        Cost:
            O(words + fields); about a millisecond for a few dozen of each.
        """
        replay, trace = Replay(), Trace()
        for layer in self.layers:
            replay.layer(self.kind, layer, trace)
        evaluation = Evaluation(self.kind, trace, _where())
        config: Any = evaluation.run()
        problems = [*replay.problems, *evaluation.problems]
        if problems:
            raise invalid(problems)
        for renamed in replay.renamed:
            warnings.warn(str(renamed), DeprecationWarning, stacklevel=2)
        past = {path: tuple(each for _, each in found.past) for path, found in trace.walk() if found.past}
        return Resolved(
            config=config,
            kind=self.kind,
            layers=self.layers,
            answers=evaluation.answers,
            past=past,
            readers=_readers(evaluation),
        )

    @classmethod
    def of(
        cls, schema: type[T], source: FilePath | Mapping[Any, object] | Stack[T] | Resolved[T] | None
    ) -> Stack[T]:
        """What an argument ``config=`` means: nothing, a file, a mapping, or a configuration with its import."""
        if isinstance(source, (Stack, Resolved)):
            return Stack(schema, source.layers)
        if isinstance(source, (str, os.PathLike)):
            return Stack(schema).file(source)
        return Stack(schema) if source is None else Stack(schema).set(source)

    @classmethod
    def from_command(cls, schema: type[T], argv: Sequence[str], environ: Mapping[str, str]) -> Stack[T]:
        """What a command reads: ``./planner.yaml`` if there is one, then the environment, then its options."""
        here = [file_layer("planner.yaml")] if os.path.exists("planner.yaml") else []
        return Stack(schema).push(*here).environment(environ).arguments(argv)


def _python_layer(words: Mapping[Any, object], rank: Rank) -> Layer:
    kind = "keyword arguments" if rank is Rank.USER else "import"
    origin = Origin(rank, f"{kind} at {_where()}")
    try:
        root, problems = from_python(words, origin)
    except SourceError as error:
        root, problems = Node(origin, {}), [Problem((), f"{origin}: {error}")]
    return Layer(rank, Place.KEYWORDS, root, tuple(problems))


def _where() -> str:
    """``file.py:line`` of the nearest caller outside planner."""
    frame = sys._getframe(1)
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] == "planner":
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def _readers(evaluation: Evaluation) -> dict[Path, tuple[str, ...]]:
    computed = [(path_text(path), answer.reads) for path, answer in evaluation.answers.items()]
    found: dict[Path, tuple[str, ...]] = {}
    for reader, reads in [*computed, *evaluation.rule_reads.items()]:
        for path in reads:
            found[path] = (*found.get(path, ()), reader)
    return found
