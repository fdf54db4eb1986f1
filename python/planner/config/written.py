"""Plain data as YAML that means the same: the one writer of what `document.py` reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from planner.config.document import core_scalar
from planner.config.layer import UPDATE, is_unset
from planner.config.problem import Path
from planner.spelling import one_line

_CONSTANTS: Final = {
    "None": "null",
    "True": "true",
    "False": "false",
    "inf": ".inf",
    "-inf": "-.inf",
    "nan": ".nan",
}
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_LONGEST_KEY: Final = (
    900  # characters; YAML takes a key of 1024 before its colon, a longer one after a question mark
)


def yaml_lines(
    values: Mapping[Any, object], origin_of: Callable[[Path], str], path: Path = ()
) -> Iterator[str]:
    """Lines of YAML, each value with its origin as a comment.

    Args:
        values: plain data, as ``Resolved.dump`` writes it.
        origin_of: by path, the text of the comment.
        path: where ``values`` stand.

    Example:
        >>> print(*yaml_lines({"names": {"0": 1, 0: "a\\n"}, "gone": "!unset"}, lambda path: "here"), sep="\\n")
        names:
          "0": 1  # here
          0: "a\\x0a"  # here
        gone: !unset  # here
    """
    indent = "  " * len(path)
    for key, value in values.items():
        here, name = (*path, key), _key(key)
        start = f"{indent}{name}:" if len(name) <= _LONGEST_KEY else f"{indent}? {name}\n{indent}:"
        if isinstance(value, Mapping) and value.get(UPDATE) is True:
            start, value = (
                f"{start} {UPDATE}",
                {each: below for each, below in value.items() if each != UPDATE},
            )
        if isinstance(value, Mapping) and value:
            yield start
            yield from yaml_lines(value, origin_of, here)
        else:
            yield f"{start} {_value(value)}  # {one_line(origin_of(here))}"


def _key(key: object) -> str:
    is_plain = isinstance(key, str) and _PLAIN.fullmatch(key) and core_scalar(key) == key
    return str(key) if is_plain else _value(key, is_inner=True)


def _value(value: object, *, is_inner: bool = False) -> str:
    if isinstance(value, str):
        is_marker = is_unset(value) and not is_inner
        return str(value) if is_marker else f'"{"".join(map(_character, value))}"'
    if isinstance(value, list):
        return f"[{', '.join(_value(item, is_inner=True) for item in value)}]"
    text = "{}" if isinstance(value, Mapping) else repr(value)
    return _CONSTANTS.get(text, text)


def _character(each: str) -> str:
    """As it stands between double quotes."""
    if each in '"\\':
        return f"\\{each}"
    if each.isprintable():
        return each
    code = ord(each)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
