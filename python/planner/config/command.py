"""Words that are only text: command line options and environment variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from planner.config.compose import compose
from planner.config.files import file_layer
from planner.config.kinds import Type
from planner.config.layer import UNSET, Layer, Node, SourceError, along, from_python, put
from planner.config.origin import Origin, Place, Rank
from planner.config.paths import split_path, with_type
from planner.config.problem import Problem
from planner.config.scalars import core_scalar
from planner.config.yaml_source import yaml_events

__all__ = ["argument_layers", "environment_layers", "option_layer", "text_node"]


def text_node(text: str, origin: Origin) -> Node:
    """A word that is only text: read as one YAML value, or as the text itself where the field takes that."""
    if text.startswith(("{", "[", '"', "'")):
        try:
            node = compose(yaml_events(text), lambda event: origin)
        except SourceError:  # then it is no YAML but may still be a string; if not, the field says so
            node = None
        if node is not None:
            return replace(node, text=text)
    return Node(origin, core_scalar(text) if text else text, text=text)


def argument_layers(kind: Type, argv: Sequence[str], first: int = 1) -> Iterator[Layer]:
    """One layer for each option, so that ``explain`` shows every repetition.

    Args:
        argv: ``--set a.b=c``, ``--set a.b:={…}`` (replaces), ``--unset a.b``, ``--config FILE``, each also in the
            form ``--set=…``. Anything else is a problem of its layer.
        first: the number of the first option.
    """
    words = iter(argv)
    for number, word in enumerate(words, start=first):  # numbers the options, not their values
        option, equals, value = word.partition("=")
        if option in ("--set", "--unset", "--config") and not equals:
            value = next(words, "")
        if option == "--config":
            yield file_layer(value)
        else:
            yield _argument(kind, option, value, _origin(number, f"{option} {value}"))


def option_layer(kind: Type, path: str, value: object, spelled: str, number: int) -> Layer:
    """The layer of an option that has a setting of its own.

    Args:
        path: dotted, as after ``--set``.
        value: text, or a list or mapping of texts.
        spelled: the option as it was written.
        number: its place among the options.
    """
    origin = _origin(number, spelled)
    if isinstance(value, str):
        node, problems = text_node(value, origin), list[Problem]()
    else:
        node, problems = from_python(value, origin, text_keys=True)
    return Layer(Rank.USER, Place.ARGUMENTS, along(split_path(kind, path)[0], node), tuple(problems))


def _origin(number: int, spelled: str) -> Origin:
    return Origin(Rank.USER, f"command line argument {number} `{spelled}`"[:200])


def _argument(kind: Type, option: str, text: str, origin: Origin) -> Layer:
    name, equals, value = text.partition("=")
    root = Node(origin, {})
    problems: tuple[Problem, ...] = ()
    if option == "--unset" and text:
        root = along(split_path(kind, text)[0], Node(origin, UNSET))
    elif option == "--set" and name and equals:
        node = replace(text_node(value, origin), replace=name.endswith(":"))
        root = along(split_path(kind, name.removesuffix(":"))[0], node)
    else:
        known = "--set PATH=VALUE, --set PATH:=VALUE, --unset PATH or --config FILE"
        problems = (Problem((), f"{origin.where}: expected {known}"),)
    return Layer(Rank.USER, Place.ARGUMENTS, root, problems)


def environment_layers(kind: Type, environ: Mapping[str, str], prefix: str) -> Iterator[Layer]:
    """The file that ``{prefix}CONFIG`` names, then one layer of all other variables with the prefix.

    Args:
        environ: the variables; case does not matter, ``__`` stands for the dot of a path.
    """
    root = Node(Origin(Rank.USER, "environment"), {})
    problems: list[Problem] = []
    for name in sorted(environ):
        path_text = name.lower().removeprefix(prefix.lower())
        if path_text == name.lower():
            continue
        if path_text == "config":
            yield file_layer(environ[name])
        else:
            path, found = split_path(kind, path_text.replace("__", "."))
            node = text_node(environ[name], Origin(Rank.USER, f"environment {name}"[:200]))
            problems += put(root, along(path, with_type(found, node)))
    yield Layer(Rank.USER, Place.ENVIRONMENT, root, tuple(problems))
