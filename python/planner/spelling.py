"""How devices and numbers of bytes are spelled: one reader for settings, drop-in functions, maps and files."""

from __future__ import annotations

import operator
import re
import reprlib
import sys
from typing import Any, Final

NAMED: Final = ("mps", "cpu", "disk")
# What torch calls devices that accelerate numbers.
_ACCELERATORS: Final = ("cuda", "xpu", "npu", "mlu", "sdaa", "musa", "hpu")
_NUMBER = re.compile(r"[0-9]{1,9}")
_NODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_WORDS = re.compile(r"([a-z_]+)(?::([0-9]{1,9}))?")
_MOST_DEVICES: Final = 10**9
_MOST_COUNTED: Final = sys.float_info.max
_MOST_BITS: Final = 10_000  # of an int that is shown; Python refuses to convert more than 4300 digits


def device_words(key: object) -> tuple[str, str | None] | None:
    """A device in words as its kind and its number: ``"xpu:1"`` or ``torch.device("xpu", 1)``; None for anything else."""
    match = _WORDS.fullmatch(_text(key))
    return match and (match[1], match[2])


def known_device(key: object) -> int | str | None:
    """The one spelling of a device: its number, or "mps", "cpu" or "disk"; None for what at most torch could know.

    Example:
        >>> [known_device(key) for key in (0, "0", "cuda", "cuda:0", "cpu", "disk", -1, True, "virtual:0")]
        [0, 0, 0, 0, 'cpu', 'disk', None, None, None]
    """
    if not isinstance(key, str) and hasattr(key, "__index__"):
        number = count_of(key)
        return number if isinstance(number, int) and number < _MOST_DEVICES else None
    if _NUMBER.fullmatch(_text(key)):
        return int(_text(key))
    kind, number_text = device_words(key) or ("", None)
    if kind in NAMED and number_text in (None, "0"):
        return kind
    return int(number_text or 0) if kind in _ACCELERATORS else None


def is_node(text: object) -> bool:
    """Whether a text can be the name of one of several computers."""
    return isinstance(text, str) and _NODE.fullmatch(text) is not None


def node_device(key: object) -> tuple[str, int | str] | None:
    """Of a device of one of several computers, the computer and the device there; None for anything else.

    Example:
        >>> [node_device(key) for key in ("a/0", "a/cuda:1", "b/cpu", "a/b/0", "/0", 0)]
        [('a', 0), ('a', 1), ('b', 'cpu'), None, None, None]
    """
    if not isinstance(key, str) or "/" not in key:
        return None
    node, _, rest = key.partition("/")
    device = known_device(rest)
    return None if device is None or not is_node(node) else (node, device)


def _text(key: object) -> str:
    return key if isinstance(key, str) else str(key) if type(key).__name__ == "device" else ""


def count_of(value: Any) -> int | float | None:
    """What a value counts: a finite number of at least 0, an int where it is one; None for anything else.

    Python's numbers, numpy's, ``Decimal``, ``Fraction`` and tensors of one element are numbers; bools of any kind are none.

    Example:
        >>> [count_of(value) for value in (3, 2.5, True, -1, float("nan"), "3", None)]
        [3, 2.5, None, None, None, None, None]
    """
    kind = str(getattr(value, "dtype", "float"))  # times and complex numbers of numpy can be floats, too
    if isinstance(value, bool) or not ("int" in kind or "float" in kind):
        return None
    number = _number(value)
    return number if number is not None and 0 <= number <= _MOST_COUNTED else None


def _number(value: Any) -> int | float | None:
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        pass  # no int; or no number of one element that has a value
    try:
        return float(value) if hasattr(value, "__float__") else None  # float() alone reads texts, too
    except (TypeError, ValueError, ArithmeticError, RuntimeError):
        return None


class _Shown(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        is_long = x.bit_length() > _MOST_BITS
        return f"an int of {x.bit_length()} bits" if is_long else super().repr_int(x, level)


# One screen line, however large a hostile value is.
_SHOWN = _Shown()
_SHOWN.maxstring = _SHOWN.maxother = 80


def shown(value: object) -> str:
    """``repr`` of a value, cut to about one line.

    Example:
        >>> len(shown("x" * 1000)), shown(1 << 20_000)
        (80, 'an int of 20001 bits')
    """
    return _SHOWN.repr(value)


def one_line(text: str) -> str:
    """A text with what would break its line, what a terminal would obey, or what cannot be seen, spelled out.

    Example:
        >>> one_line("layers\\x1b[31m.0\\n")
        'layers\\\\x1b[31m.0\\\\n'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
