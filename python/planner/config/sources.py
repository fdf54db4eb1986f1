"""What can be read as layers: files, the environment, and the options of a command line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from planner.config.document import Event, compose, core_scalar, json_events, parsed, yaml_events
from planner.config.layer import (
    MAX_DEPTH,
    UNSET,
    Layer,
    Node,
    SourceError,
    along,
    from_python,
    layer_of,
    put,
)
from planner.config.problem import Origin, Problem, Rank, UserSource
from planner.config.types import Classes, Type, fields_of, split_path

MAX_BYTES: Final = 2**20
_CONFIG: Final = "config"
_NOT_SHOWN: Final = "(not shown)"

# The standard TOML parser needs quadratic time for a long dotted key, so its length is checked beforehand.
_LONG_KEY = re.compile(r"""(?<![\w-])(?:(?:"[^"\n]*+"|'[^'\n]*+'|[\w-]++)[ \t]*+\.[ \t]*+){64}""", re.ASCII)

FilePath = str | os.PathLike[str]


def file_layer(path: FilePath) -> Layer:
    """The layer of a YAML, TOML or JSON file, by its suffix; what is wrong with the file is a problem of the layer."""
    origin = Origin(Rank.USER, os.fspath(path), is_written=True)
    return layer_of(UserSource.FILE, origin, partial(_parse, origin))


def _parse(origin: Origin) -> tuple[Node | None, list[Problem]]:
    suffix = os.path.splitext(origin.where)[1].lower()
    if suffix in (".yaml", ".yml"):
        return _document(yaml_events(_text(origin.where)), origin), []
    if suffix == ".json":
        return _json(origin), []
    if suffix == ".toml":
        return from_python(_toml(_text(origin.where)), origin, text_keys=True)
    raise SourceError("the name must end in .yaml, .yml, .toml or .json")


def json_tree(path: FilePath, rank: Rank) -> Node | None:
    """The tree of a JSON file. Raises SourceError."""
    return _json(Origin(rank, os.fspath(path)))


def _json(file: Origin) -> Node | None:
    return _document(json_events(_text(file.where)), file, text_keys=True)


def _document(events: Iterator[Event], file: Origin, *, text_keys: bool = False) -> Node | None:
    def origin_at(event: Event) -> Origin:
        return replace(file, where=f"{file.where}:{event.line}:{event.column}")

    root = compose(events, origin_at, text_keys=text_keys)
    if root is not None and not isinstance(root.content, dict):
        raise SourceError("the file must hold a mapping")
    return root


def _text(path: FilePath) -> str:
    """The text of a file. Raises SourceError: missing, unreadable, over 1 MiB, or not UTF-8."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # no name of a file: a zero byte, or half of a character
        raise SourceError(f"cannot be read: {error}") from error
    if len(content) > MAX_BYTES:
        raise SourceError(f"larger than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceError(f"line {line}: not UTF-8 (byte {error.start})") from error


def _toml(text: str) -> dict[str, object]:
    long_key = _LONG_KEY.search(text)
    if long_key:
        line = text.count("\n", 0, long_key.start()) + 1
        raise SourceError(f"line {line}: a key of more than {MAX_DEPTH} parts")
    import tomllib  # few have a TOML file, and every command starts here

    return parsed(tomllib.loads, text, "TOML")


def _text_node(text: str, origin: Origin) -> Node:
    """A value that is only text: read as one YAML value, or as the text itself where the field takes that."""
    if text.startswith(("{", "[", '"', "'")):
        try:
            node = compose(yaml_events(text), lambda event: origin)
        except SourceError:  # then it is no YAML but may still be a string; if not, the field refuses it
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
    arguments = iter(argv)
    for number, argument in enumerate(arguments, start=first):  # numbers the options, not their values
        option, equals, value = argument.partition("=")
        if option in ("--set", "--unset", "--config") and not equals:
            value = next(arguments, "")
        if option == "--config":
            yield file_layer(value)
        else:
            origin = _option_origin(number, f"{option} {value}")
            yield layer_of(UserSource.ARGUMENTS, origin, partial(_argument, kind, option, value, origin))


def option_layer(kind: Type, path: str, value: object, spelled: str, number: int) -> Layer:
    """The layer of an option that has a setting of its own.

    Args:
        path: dotted, as after ``--set``.
        value: text, or a list or mapping of texts.
        spelled: the option as it was written.
        number: its place among the options.
    """
    origin = _option_origin(number, spelled)
    if isinstance(value, str):
        node, problems = _text_node(value, origin), list[Problem]()
    else:
        node, problems = from_python(value, origin, text_keys=True)
    return Layer(Rank.USER, UserSource.ARGUMENTS, along(split_path(kind, path)[0], node), tuple(problems))


def _option_origin(number: int, spelled: str) -> Origin:
    return Origin(Rank.USER, f"command line argument {number} `{spelled}`"[:200], is_written=True)


def _argument(kind: Type, option: str, text: str, origin: Origin) -> tuple[Node, list[Problem]]:
    name, equals, value = text.partition("=")
    if option == "--unset" and text:
        return along(split_path(kind, text)[0], Node(origin, UNSET)), []
    if option == "--set" and name and equals:
        node = replace(_text_node(value, origin), replace=name.endswith(":"))
        return along(split_path(kind, name.removesuffix(":"))[0], node), []
    raise SourceError("expected --set PATH=VALUE, --set PATH:=VALUE, --unset PATH or --config FILE")


def unknown_variables(kind: Type, environ: Mapping[str, str], prefix: str) -> dict[str, str | None]:
    """Variables with the prefix that name no setting, with the nearest that does, if any is near.

    Args:
        kind: the type of a schema.
        environ: the variables.
        prefix: of those that are meant.
    """
    unknown = {}
    for name in sorted(environ):
        path = _path_text(name, prefix)
        if path is None or path == _CONFIG:
            continue
        if split_path(kind, path)[1] is None:
            first, dot, rest = path.partition(".")
            inside = split_path(kind, first)[1]
            if dot and inside is not None:
                near, start = _nearest_field(inside, rest), f"{prefix}{first.upper()}__"
            else:
                near, start = _nearest_field(kind, first), prefix
            unknown[name] = start + near.upper() if near else None
    return unknown


def _nearest_field(kind: Type, word: str) -> str | None:
    classes = kind.tree.classes if isinstance(kind.tree, Classes) else ()
    fields = [name for cls in classes for name in fields_of(cls)]
    return next(iter(difflib.get_close_matches(word[:100], fields, n=1)), None)


def _path_text(name: str, prefix: str) -> str | None:
    """The dotted path that a variable means; None for one without the prefix."""
    path = name.lower().removeprefix(prefix.lower())
    return None if path == name.lower() else path.replace("__", ".")


def environment_layers(kind: Type, environ: Mapping[str, str], prefix: str) -> Iterator[Layer]:
    """The file that ``{prefix}CONFIG`` names, then one layer of all other variables with the prefix.

    Args:
        environ: the variables; case does not matter, ``__`` stands for the dot of a path.
    """
    root = Node(Origin(Rank.USER, "environment"), {})
    problems: list[Problem] = []
    for name in sorted(environ):
        path_text = _path_text(name, prefix)
        if path_text is None:
            continue
        if path_text == _CONFIG:
            yield file_layer(environ[name])
        else:
            path, found = split_path(kind, path_text)
            # What names no setting may be another program's secret, and problems are printed with what was set.
            text = environ[name] if found else _NOT_SHOWN
            node = _text_node(text, Origin(Rank.USER, f"environment {name}"[:200], is_written=True))
            problems += put(root, path[0], along(path[1:], found.spelled_out(node) if found else node))
    yield Layer(Rank.USER, UserSource.ENVIRONMENT, root, tuple(problems))
