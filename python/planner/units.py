"""The only parser and printer of byte sizes. Everywhere else a size is an int that counts bytes."""

from __future__ import annotations

import re

from planner.errors import InvalidByteSizeError

_LONGEST = 100  # characters; matching takes the square of them where the text is no size
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
_FACTORS = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgtp", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgtp", start=1)},
}
_UNITS = {
    f"{prefix}{kind}B": base**power
    for kind, base in (("i", 1024), ("", 1000))
    for power, prefix in enumerate("KMGTP", start=1)
}
_SHORT = {prefix: 1024**power for power, prefix in enumerate("kmgtp", start=1)}
_GRAMMAR = "a number of bytes, or a number with KB, MB, GB, TB, PB, KiB, MiB, GiB, TiB or PiB, as in '5.5GiB'"


def is_bit_spelling(text: str) -> bool:
    """Whether a size ends in a decimal unit with a lower-case b ("10Gb"), which accelerate reads as bits.

    Example:
        >>> is_bit_spelling("10Gb"), is_bit_spelling("10GB"), is_bit_spelling("10Gib")
        (True, False, False)
    """
    match = _SIZE.fullmatch(text) if len(text) <= _LONGEST else None
    unit = match.group(2) if match else ""
    return len(unit) == 2 and unit.endswith("b")


def parse_bytes(text: str, *, lower_b_is_bits: bool = False, takes_short_units: bool = False) -> int:
    """Bytes meant by a size in words.

    Args:
        text: a number, optionally followed by a unit; blanks around the unit are allowed.
        lower_b_is_bits: read "Gb" as gigabits, as accelerate does; otherwise such a spelling is refused,
            because its writers meant bytes as often as bits.
        takes_short_units: read "G" as GiB, as docker and SLURM do, and likewise K, M, T and P; accelerate refuses them.

    Returns:
        Whole bytes, rounded down.

    Raises:
        InvalidByteSizeError: no such grammar, or an ambiguous unit. Fields: ``text``.

    Source:
        ``convert_file_size_to_int`` in accelerate 1.15, utils/modeling.py, for the meaning of each unit and for
        the rounding (a float product, truncated).

    Example:
        >>> parse_bytes("1.5 GiB"), parse_bytes("900"), parse_bytes("2TB"), parse_bytes("24G", takes_short_units=True)
        (1610612736, 900, 2000000000000, 25769803776)
    """
    match = _SIZE.fullmatch(text) if len(text) <= _LONGEST else None
    factors = _FACTORS | _SHORT if takes_short_units else _FACTORS
    factor = factors.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise InvalidByteSizeError(
            f"size {text[:_LONGEST]!r} is not in a valid format: write {_GRAMMAR}", text=text
        )
    number, bits = match.group(1), is_bit_spelling(text)
    if bits and not lower_b_is_bits:
        raise InvalidByteSizeError(
            f"size {text!r} could mean bits or bytes: write a capital B for bytes, as in '{number}{match.group(2)[0].upper()}B'",
            text=text,
        )
    value = float(number) * factor
    if value == float("inf"):
        raise InvalidByteSizeError(f"size {text!r} is not finite", text=text)
    return int(number) if number.isdigit() and factor == 1 else int(value) // (8 if bits else 1)


def exact_bytes(count_bytes: int) -> str:
    """A size to be read back: the shortest spelling with a unit that is the same to the byte.

    Example:
        >>> exact_bytes(25769803776), exact_bytes(24 * 10**9), exact_bytes(1537)
        ('24GiB', '24GB', '1537B')
    """
    spellings = [f"{count_bytes}B"]
    spellings += [
        f"{count_bytes // factor}{unit}"
        for unit, factor in _UNITS.items()
        if count_bytes and count_bytes % factor == 0
    ]
    return min((text for text in spellings if parse_bytes(text) == count_bytes), key=len)


def format_bytes(count_bytes: float) -> str:
    """A size as people read it: binary units, three significant digits, exact bytes below one KiB.

    Example:
        >>> format_bytes(512), format_bytes(1610612736)
        ('512 B', '1.50 GiB')
    """
    size, sign = abs(count_bytes), "-" if count_bytes < 0 else ""
    if isinstance(size, int) and size.bit_length() > 1000:  # more than a float can say
        return f"{sign}2^{size.bit_length() - 1} B"
    if size < 1024:
        return f"{sign}{size:g} B"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        size /= 1024
        if size < 1024 or unit == "PiB":
            break
    digits = 2 if size < 10 else 1 if size < 100 else 0
    return f"{sign}{size:.{digits}f} {unit}"
