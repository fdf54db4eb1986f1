"""A file as a layer: YAML, TOML or JSON by its suffix, within fixed limits."""

from __future__ import annotations

import os
import re
import tomllib
from typing import Final

from planner.config.compose import Event, compose
from planner.config.json_source import json_events
from planner.config.layer import MAX_DEPTH, Layer, Node, SourceError, from_python
from planner.config.origin import Origin, Place, Rank
from planner.config.problem import Problem
from planner.config.yaml_source import yaml_events

__all__ = ["MAX_BYTES", "file_layer", "json_tree", "read_text"]

MAX_BYTES: Final = 2**20

# The standard TOML parser needs quadratic time for a long dotted key, so its length is checked beforehand.
_LONG_KEY = re.compile(r"""(?<![\w-])(?:(?:"[^"\n]*+"|'[^'\n]*+'|[\w-]++)[ \t]*+\.[ \t]*+){64}""", re.ASCII)

FilePath = str | os.PathLike[str]


def read_text(path: FilePath) -> str:
    """The text of a configuration file.

    Raises:
        SourceError: missing, unreadable, over 1 MiB, or not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise SourceError(f"larger than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceError(f"line {line}: not UTF-8 (byte {error.start})") from error


def file_layer(path: FilePath) -> Layer:
    """What a file says; whatever is wrong with the file is a problem of the layer, raised by resolve."""
    name = os.fspath(path)
    empty = Node(Origin(Rank.USER, name), {})
    try:
        root, problems = _parse(name)
    except SourceError as error:
        return Layer(Rank.USER, Place.FILE, empty, (Problem((), f"{name}: {error}"),))
    if root is not None and not isinstance(root.content, dict):
        return Layer(Rank.USER, Place.FILE, empty, (Problem((), f"{name}: the file must hold a mapping"),))
    return Layer(Rank.USER, Place.FILE, root or empty, tuple(problems))


def _parse(name: str) -> tuple[Node | None, list[Problem]]:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in (".yaml", ".yml"):
        return compose(yaml_events(read_text(name)), lambda event: _at(name, Rank.USER, event)), []
    if suffix == ".json":
        return json_tree(name, Rank.USER), []
    if suffix == ".toml":
        return from_python(_toml(read_text(name)), Origin(Rank.USER, name), text_keys=True)
    raise SourceError("the name must end in .yaml, .yml, .toml or .json")


def json_tree(name: FilePath, rank: Rank) -> Node | None:
    """The tree of a JSON file. Raises SourceError."""
    return compose(
        json_events(read_text(name)), lambda event: _at(os.fspath(name), rank, event), text_keys=True
    )


def _at(name: str, rank: Rank, event: Event) -> Origin:
    return Origin(rank, f"{name}:{event.line}:{event.column}")


def _toml(text: str) -> dict[str, object]:
    long_key = _LONG_KEY.search(text)
    if long_key:
        line = text.count("\n", 0, long_key.start()) + 1
        raise SourceError(f"line {line}: a key of more than {MAX_DEPTH} parts")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise SourceError(f"nested more than {MAX_DEPTH} deep") from error
    except ValueError as error:
        raise SourceError(f"not TOML: {error}") from error
