"""Where the entries of a zip file lie in it, where they are stored as they are."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from planner.checkpoint.reading import fault

__all__ = ["Bytes", "Entry", "data_begin", "find_entries"]

Bytes = Callable[[int, int], bytes]
"""The bytes of a file between two offsets; an error where the file has fewer."""

_END: Final = struct.Struct("<4s4H2LH")
_LARGE_LOCATOR: Final = struct.Struct("<4sLQL")
_LARGE_END: Final = struct.Struct("<4sQ2H2L4Q")
_ROW: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_ELSEWHERE: Final = 0xFFFFFFFF  # the value is in an extra field, which has room for it
_ENCRYPTED: Final = 1
_MOST_DIRECTORY_BYTES: Final = 64 * 2**20


class Entry(NamedTuple):
    """One entry of a zip file.

    Args:
        name: its path in the archive.
        size_bytes: how many bytes it has.
        header: offset of what stands before it.
        most_end: offset behind which none of its bytes can lie.
    """

    name: str
    size_bytes: int
    header: int
    most_end: int


def find_entries(read: Bytes, size_bytes: int, shown: str) -> dict[str, Entry]:
    """The entries of a zip file by name.

    Args:
        read: reads the file.
        size_bytes: its size.
        shown: its name, for messages.

    Raises:
        CheckpointError: no zip file as torch writes them: an entry is compressed, encrypted, there twice or larger than the file,
            or entries share bytes. Fields: ``file``, ``reason``.

    Guarantee: nothing is expanded; all entries together are no larger than the file.
    """
    begin, end, count = _directory(read, size_bytes, shown)
    if end - begin > _MOST_DIRECTORY_BYTES:
        raise fault(
            shown,
            f"its list of entries has {end - begin} bytes; more than {_MOST_DIRECTORY_BYTES} are not read",
        )
    rows, at = read(begin, end), 0
    entries: dict[str, Entry] = {}
    for _ in range(count):
        entry, at = _entry(rows, at, begin, shown)
        if entry.name in entries:
            raise fault(shown, f"lists '{entry.name}' twice")
        entries[entry.name] = entry
    if sum(entry.size_bytes for entry in entries.values()) > begin:
        raise fault(
            shown, f"its entries say that they are larger together than the {begin} bytes before their list"
        )
    return entries


def data_begin(read: Bytes, entry: Entry, shown: str) -> int:
    """Offset of an entry's first byte. Raises CheckpointError."""
    begin = entry.header + _LOCAL.size
    if begin + entry.size_bytes <= entry.most_end:
        mark, _, flags, method, *_, name_bytes, extra_bytes = _LOCAL.unpack(read(entry.header, begin))
        begin += int(name_bytes) + int(extra_bytes)
        if (
            mark == b"PK\3\4"
            and not (method or flags & _ENCRYPTED)
            and begin + entry.size_bytes <= entry.most_end
        ):
            return begin
    raise fault(shown, f"'{entry.name}' does not lie where the list of entries says")


def _directory(read: Bytes, size_bytes: int, shown: str) -> tuple[int, int, int]:
    """Where the list of entries lies, and how many it has."""
    end = size_bytes - _END.size
    record = read(end, size_bytes) if end >= 0 else b""
    if record[:4] != b"PK\5\6":
        raise fault(shown, "truncated, or no zip file: its list of entries is not at its end")
    _, _, _, _, count, directory_bytes, begin, _ = _END.unpack(record)
    locator = read(end - _LARGE_LOCATOR.size, end) if end >= _LARGE_LOCATOR.size else b""
    if locator[:4] == b"PK\6\7":
        at = _LARGE_LOCATOR.unpack(locator)[2]
        if at + _LARGE_END.size > size_bytes:
            raise fault(shown, "its list of entries lies behind its end")
        mark, *_, count, directory_bytes, begin = _LARGE_END.unpack(read(at, at + _LARGE_END.size))
        if mark != b"PK\6\6":
            raise fault(shown, "its list of entries is not where it says")
    if begin + directory_bytes > end:
        raise fault(shown, "its list of entries lies behind its end")
    if count * _ROW.size > directory_bytes:
        raise fault(shown, f"its list of entries has {directory_bytes} bytes for {count} entries")
    return begin, begin + directory_bytes, count


def _entry(rows: bytes, at: int, most_end: int, shown: str) -> tuple[Entry, int]:
    """One row of the list, and where the next one begins."""
    if at + _ROW.size > len(rows):
        raise fault(shown, "its list of entries is cut off")
    mark, _, _, flags, method, _, _, _, stored_bytes, size_bytes, *lengths, header = _ROW.unpack_from(
        rows, at
    )
    name_bytes, extra_bytes, comment_bytes = lengths[:3]
    at += _ROW.size
    raw, extra = rows[at : at + name_bytes], rows[at + name_bytes : at + name_bytes + extra_bytes]
    name = raw.decode(errors="backslashreplace")
    if mark != b"PK\1\2":
        raise fault(shown, "its list of entries holds something else")
    if flags & _ENCRYPTED:
        raise fault(shown, f"'{name}' is encrypted")
    large = _large_values(extra)
    size_bytes, stored_bytes, header = (
        next(large, _ELSEWHERE) if value == _ELSEWHERE else value
        for value in (size_bytes, stored_bytes, header)
    )
    if method or size_bytes != stored_bytes:
        raise fault(
            shown,
            f"'{name}' is compressed, {stored_bytes} bytes that say they become {size_bytes}; torch.save stores tensors as they are: "
            "write it again with it, or as a safetensors file",
        )
    return Entry(name, size_bytes, header, most_end), at + name_bytes + extra_bytes + comment_bytes


def _large_values(extra: bytes) -> Iterator[int]:
    """The values of the extra field that has those which need more than 32 bits, in their order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            content = extra[at + 4 : at + 4 + length]
            yield from struct.unpack(f"<{len(content) // 8}Q", content[: len(content) // 8 * 8])
            return
        at += 4 + length
