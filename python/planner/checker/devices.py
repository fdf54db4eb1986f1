"""How the judge reads devices and budgets."""

from __future__ import annotations

import operator
import re
import reprlib
import sys
from collections.abc import Mapping
from typing import Any, Final

from planner.errors import InvalidDevicesError
from planner.units import parse_bytes

Device = int | str

UNLIMITED_UNLESS_LISTED: Final = frozenset({"cpu", "disk"})
_WITHOUT_INDEX: Final = frozenset({"cpu", "disk", "mps"})
_SPELLING: Final = re.compile(r"([a-z_]+)(?::([0-9]{1,9}))?")
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_ACCELERATORS: Final = frozenset({"cuda", "hpu", "mlu", "musa", "npu", "sdaa", "xpu"})
_MOST_DEVICES: Final = 10**9


def device_of(spelling: Any) -> Device:
    """The device that is meant. Accelerators are their index, whatever their type; what names no device stays text."""
    index = None if isinstance(spelling, str) else _index_of(spelling)
    text = _text(spelling) if index is None else str(index) if abs(index) < _MOST_DEVICES else "a number"
    if _NUMBER.fullmatch(text):
        is_spelled = index is not None or isinstance(spelling, str)
        return int(text) if is_spelled else f"{type(spelling).__name__} {text}"
    match = _SPELLING.fullmatch(text)
    kind, number = (match[1], match[2]) if match else ("", None)
    if kind in _WITHOUT_INDEX and number in (None, "0"):
        return kind
    return int(number or 0) if kind in _ACCELERATORS or (kind and kind == _backend()) else text


def _text(spelling: Any) -> str:
    is_spelled = isinstance(spelling, str) or type(spelling).__name__ == "device"
    return str(spelling) if is_spelled else f"{type(spelling).__name__} {shown(spelling)}"


def shown(value: Any) -> str:
    """A value in a message: short, whatever it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an int with more digits than Python shows
        return f"an int of {value.bit_length()} bits" if isinstance(value, int) else object.__repr__(value)


def _index_of(value: Any) -> int | None:
    """The whole number that a value is; None for bools of any kind, and for what is none."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "int")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _backend() -> str | None:
    """What torch calls a back end that was added to it. Its users have imported torch, so it is not imported here."""
    torch: Any = sys.modules.get("torch")
    return None if torch is None else str(torch._C._get_privateuse1_backend_name())


def is_device(device: Device) -> bool:
    """Whether what was read by :func:`device_of` names a device."""
    return isinstance(device, int) or device in _WITHOUT_INDEX


def names_none(device: Device) -> str:
    """Why what was read names no device: what to say behind it."""
    is_far = isinstance(device, str) and "/" in device
    return "names no device" + (
        ": those of several computers run no device map, which is for one process" if is_far else ""
    )


def read_budgets(max_memory: Any) -> dict[Device, float]:
    """Bytes by device.

    Raises:
        InvalidDevicesError: no mapping, no device, one device twice, or no size. Fields: ``device``.
        InvalidByteSizeError: words that are no size. Fields: ``text``.
    """
    if not isinstance(max_memory, Mapping):
        raise InvalidDevicesError(
            f"max_memory must map devices to sizes, as in {{0: '10GiB', 'cpu': '30GiB'}}; got {shown(max_memory)}",
            device=None,
        )
    budgets: dict[Device, float] = {}
    for spelling, budget in max_memory.items():
        device = device_of(spelling)
        if not is_device(device):
            raise InvalidDevicesError(f"{device!r} {names_none(device)}", device=spelling)
        if device in budgets:
            raise InvalidDevicesError(f"{shown(spelling)} is listed under two spellings", device=spelling)
        size = parse_bytes(budget, lower_b_is_bits=True) if isinstance(budget, str) else _count(budget)
        if size is None or not 0 <= size <= sys.float_info.max:
            raise InvalidDevicesError(
                f"the budget of {device} is {shown(budget)}, not a size", device=spelling
            )
        budgets[device] = size
    return budgets


def _count(value: Any) -> float | None:
    """The number that a value is; None for what is none, bools and texts among them."""
    kind = str(getattr(value, "dtype", "float"))  # numpy's times and complex numbers turn into floats, too
    whole = _index_of(value)
    if whole is not None or isinstance(value, bool | bytes) or not ("int" in kind or "float" in kind):
        return whole
    try:
        return float(value)
    except (TypeError, ValueError, ArithmeticError, RuntimeError):
        return None
