"""How sizes are written in settings: bytes with a unit, or a share."""

from __future__ import annotations

import re
from typing import Final

from planner.spelling import count_of, shown
from planner.units import exact_bytes, parse_bytes

_LEAST_BARE_BYTES: Final = 2**20
_MOST_WRITTEN_BYTES: Final = 2**60


def read_bytes(value: object) -> int:
    """Whole bytes from a number of any kind, rounded down, or from a size as text. Raises ValueError."""
    if isinstance(value, str):
        return parse_bytes(value, takes_short_units=True)
    count = count_of(value)
    if count is None:
        raise ValueError(
            f"expected a finite number of bytes of at least 0, or a size such as '10GiB', got {shown(value)}"
        )
    return int(count)


def refuse_bare_number(value: object) -> None:
    """Refuses what a person hardly meant: fewer bytes than any device holds, without a unit; or more than any will hold.

    Raises:
        ValueError: with what may have been meant.

    Example:
        >>> refuse_bare_number("24GiB")
        >>> refuse_bare_number(24)
        Traceback (most recent call last):
            ...
        ValueError: 24 bytes? A size needs a unit: did you mean 24GiB? (24 bytes are written 24B)
    """
    text = str(value).strip()
    is_bare = not isinstance(value, str) or text.replace(".", "", 1).isdecimal()
    if isinstance(value, str) and not is_bare and not text.endswith("%"):
        if read_bytes(value) > _MOST_WRITTEN_BYTES:
            raise ValueError(f"{text} is more than any device holds; the most that is read is 1024PiB")
        return
    if is_bare and 0 < read_bytes(value) < _LEAST_BARE_BYTES:
        unit = "GiB" if read_bytes(value) < 1024 else "MiB"
        raise ValueError(
            f"{text} bytes? A size needs a unit: did you mean {text}{unit}? ({text} bytes are written {text}B)"
        )


def write_size(value: int | str) -> str:
    """A number of bytes with its unit, so that it can be read back anywhere; a share as it is."""
    return value if isinstance(value, str) else exact_bytes(value)


def read_size_or_share(value: object) -> int | str:
    """Bytes, or a share as in "10%". Raises ValueError."""
    if isinstance(value, str) and value.rstrip().endswith("%"):
        share = value.rstrip()[:-1].strip()
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", share) or float(share) > 100:
            raise ValueError(f"expected a share from 0% to 100%, got {shown(value)}")
        return f"{float(share):.9g}%"  # all digits that it may have
    return read_bytes(value)
