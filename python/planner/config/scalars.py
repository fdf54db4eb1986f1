"""Plain scalars as the YAML 1.2 core schema reads them: ``1e-3`` is a float, ``on`` a string, ``012`` is 12."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["core_scalar"]

_WORDS: Final[dict[str, object]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
# Python refuses to convert more than 4300 digits; so long a number stays text and fails as such.
_INT = re.compile(r"[-+]?[0-9]{1,4000}")
_BASED = re.compile(r"0o[0-7]{1,4000}|0x[0-9a-fA-F]{1,4000}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


def core_scalar(text: str) -> object:
    """The value of an unquoted scalar.

    Source:
        YAML 1.2.2, section 10.3.2, tag resolution of the core schema.

    Example:
        >>> [core_scalar(text) for text in ("1e-3", "on", "012", "0x10", "~", "10GiB")]
        [0.001, 'on', 12, 16, None, '10GiB']
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text
