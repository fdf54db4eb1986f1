"""The one way to make a configuration: put layers on a stack, then resolve it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from planner.caller import caller
from planner.config.annotations import parse_type
from planner.config.evaluate import Evaluation
from planner.config.layer import UNSET, Layer, from_python, layer_of
from planner.config.problem import Origin, Path, Rank, UserSource, invalid
from planner.config.replay import Replay
from planner.config.resolved import Resolved
from planner.config.resolved_node import ResolvedNode
from planner.config.sources import (
    FilePath,
    argument_layers,
    environment_layers,
    file_layer,
    option_layer,
    unknown_variables,
)
from planner.config.types import Type

T = TypeVar("T")

COMMAND_FILES = ("planner.yaml", "planner.yml")
"""Where a command looks for settings in its folder; the first that is there counts."""


def command_file() -> str | None:
    """The file of settings that a command finds in its folder."""
    return next((name for name in COMMAND_FILES if os.path.exists(name)), None)


@dataclass(frozen=True, slots=True, init=False)
class Stack(Generic[T]):
    """Layers over a schema. Every method returns a new stack; nothing is read or checked before it is asked for.

    Args:
        schema: a ``@config`` class, or a union of tagged ones.

    Guarantee:
        The order of precedence is fixed, whatever the order of calls: imported < files < environment < command line
        < keywords; within one of these the later call wins.

    Example:
        >>> from planner.settings.schema import Settings
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
        object.__setattr__(
            self, "kind", _class_type(schema) if isinstance(schema, type) else parse_type(schema)
        )
        object.__setattr__(self, "layers", tuple(ordered))

    def push(self, *layers: Layer) -> Stack[T]:
        """This stack with more layers, each above all others of its rank and place."""
        return Stack(self.schema, (*self.layers, *layers))

    def imported(self, values: Mapping[Any, object] | Layer) -> Stack[T]:
        """Values from elsewhere that were translated to this schema: above defaults, below all that the user sets."""
        return self.push(values if isinstance(values, Layer) else _python_layer(values, Rank.IMPORTED))

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

    def set(self, values: Mapping[Any, object] | None = None, /, **keywords: object) -> Stack[T]:
        """Values from code: nested mappings, tuples as paths, keywords; ``UNSET`` deletes, ``Replace`` replaces.

        Plain data, as ``Resolved.dump`` writes it, has "!unset" as a value and "!update" as a key for the same.
        """
        more = [] if values is None else [_python_layer(values, Rank.USER)]
        return self.push(*more, *([_python_layer(keywords, Rank.USER)] if keywords else []))

    def unset(self, path: Path) -> Stack[T]:
        """Forgets what all layers so far set at a path."""
        return self.set({path: UNSET})

    def update(self, other: Stack[T] | Resolved[T] | Mapping[Any, object]) -> Stack[T]:
        """The values that the user set in another configuration, above all that was set here.

        Neither its defaults nor its imports come along. An instance of the schema is refused by ``resolve``, since
        it cannot be told which of its values were meant.
        """
        if not isinstance(other, (Stack, Resolved)):
            return self.set(other)
        layers = [layer for layer in other.layers if layer.rank is Rank.USER]
        return self.push(*(replace(layer, place=UserSource.KEYWORDS) for layer in layers))

    def resolve(self) -> Resolved[T]:
        """The configuration that these layers mean.

        Raises:
            InvalidConfigError: with all problems at once. Fields: ``problems``.

        Guarantee:
            Pure: the same layers give an equal result, and nothing is changed or read.

        Cost:
            O(values + fields), where a field that was not set costs next to nothing; see ``benches/bench_config.py``.
        """
        replay, root = Replay(), ResolvedNode((), self.kind, place=_where())
        for layer in self.layers:
            replay.problems += layer.problems
            replay.apply_layer(root, layer.root)
        evaluation = Evaluation(root, replay)
        config = evaluation.run()
        if replay.problems:
            raise invalid(replay.problems)
        return Resolved(config=config, layers=self.layers, root=root, rule_reads=evaluation.rule_reads)

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
        """What a command reads: ``./planner.yaml`` or ``./planner.yml`` if there is one, then the environment, then its
        options. Variables with the prefix that name no setting are left out: see :meth:`unknown_variables`.
        """
        found = command_file()
        here = () if found is None else (file_layer(found),)
        stack: Stack[T] = Stack(schema).push(*here)
        unknown = stack.unknown_variables(environ)
        known = {name: value for name, value in environ.items() if name not in unknown}
        return stack.environment(known).arguments(argv)

    def unknown_variables(
        self, environ: Mapping[str, str], *, prefix: str = "PLANNER_"
    ) -> dict[str, str | None]:
        """Variables with the prefix that name no setting, and the variable that may have been meant.

        Another program may have the same prefix, so a command warns of these and goes on; :meth:`environment`, which is
        called for the variables, refuses them. Neither shows their values.
        """
        return unknown_variables(self.kind, environ, prefix)


@functools.cache  # not for unions: two with another order are equal, but the first class is the default
def _class_type(schema: type) -> Type:
    return parse_type(schema)


def _python_layer(values: Mapping[Any, object], rank: Rank) -> Layer:
    kind = "keyword arguments" if rank is Rank.USER else "import"
    origin = Origin(rank, f"{kind} at {_where()}")
    return layer_of(UserSource.KEYWORDS, origin, lambda: from_python(values, origin))


def _where() -> str:
    """``file.py:line`` of the nearest caller outside planner."""
    frame = caller()
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
