"""Words that are only text: command line options and environment variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from planner.config.compose import compose
from planner.config.files import file_layer
from planner.config.kinds import Type, split_path
from planner.config.layer import UNSET, Layer, Node, SourceError, along, put
from planner.config.origin import Origin, Place, Rank
from planner.config.problem import Problem
from planner.config.scalars import core_scalar
from planner.config.yaml_source import yaml_events

__all__ = ["argument_layers", "environment_layers", "text_node"]


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


def argument_layers(kind: Type, argv: Sequence[str]) -> Iterator[Layer]:
    """One layer for each option, so that ``explain`` shows every repetition.

    Args:
        argv: ``--set a.b=c``, ``--set a.b:={…}`` (replaces), ``--unset a.b``, ``--config FILE``, each also in the
            form ``--set=…``. Anything else is a problem of its layer.
    """
    words = iter(argv)
    for number, word in enumerate(words, start=1):  # numbers the options, not their values
        option, equals, value = word.partition("=")
        if option in ("--set", "--unset", "--config") and not equals:
            value = next(words, "")
        if option == "--config":
            yield file_layer(value)
        else:
            origin = Origin(Rank.USER, f"command line argument {number} `{option} {value}`"[:200])
            yield _argument(kind, option, value, origin)


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
            problems += put(root, along(path, found.with_type(node) if found else node))
    yield Layer(Rank.USER, Place.ENVIRONMENT, root, tuple(problems))
