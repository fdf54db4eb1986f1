"""The page cache under a checkpoint: emptied, filled, filled by halves, and looked at; and a bare read of the same bytes."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from planner import _core

__all__ = ["BlockRanges", "NotColdError", "cool", "layer_of", "warm"]

PAGE = 4096
MADV_DONTNEED = 4
PIECE = 8 << 20
COLD_SHARE = 0.01
Range = tuple[int, int, int]
"""File, begin, end."""


class NotColdError(Exception):
    """Somebody else holds pages of the files, so nothing can be said about a cold cache."""


def cool(folder: Path) -> None:
    """Empties the page cache of a folder's files. Pages that this process has mapped are let go first.

    Raises:
        NotColdError: more than a hundredth is still there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(folder.resolve()) in line and ".safetensors" in line:
            begin, end = (int(word, 16) for word in line.split()[0].split("-"))
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED)
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if (share := cached_share(folder)) > COLD_SHARE:
        raise NotColdError(f"{share:.0%} of {folder} is in the page cache and stays there")


def warm(folder: Path) -> None:
    """Reads everything through the page cache."""
    buffer = bytearray(PIECE)
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def cached_share(folder: Path) -> float:
    rows = []
    for path in folder.glob("*.safetensors"):
        file = _core.StoredFile.open(str(path), path.name)
        rows.append(_core.cached_bytes(file, 0, file.size_bytes))
        file.close()
    return sum(cached for cached, _ in rows) / max(1, sum(asked for _, asked in rows))


class BlockRanges:
    """Where the blocks of a checkpoint lie in its files, for bare reads and for caching some of them."""

    def __init__(self, folder: Path, is_block: Callable[[str], str | None]) -> None:
        paths = sorted(folder.glob("*.safetensors"))
        self.files = [_core.StoredFile.open(str(path), path.name) for path in paths]
        self.blocks: dict[str, list[Range]] = {}
        for name, file, begin, end, *_ in _core.Headers.of_files(self.files, None).ranges():
            if (block := is_block(name)) is not None:
                self.blocks.setdefault(block, []).append((file, begin, end))
        self.blocks = {block: joined(ranges) for block, ranges in self.blocks.items()}
        size = max(sum(end - begin + 2 * PAGE for _, begin, end in each) for each in self.blocks.values())
        self.buffer = _core.PageBuffer(size)

    @property
    def nbytes(self) -> int:
        return sum(end - begin for each in self.blocks.values() for _, begin, end in each)

    def read(self, *, direct: bool = True) -> None:
        """Every block into one buffer of huge pages, past the page cache or through it, one read at a time."""
        for ranges in self.blocks.values():
            spans, at = [], 0
            for file, begin, end in ranges:
                at += begin % PAGE
                spans.append((file, begin, end, at))
                at = -(-(at + end - begin) // PAGE) * PAGE
            _core.read_spans(self.files, spans, self.buffer, direct, 1)

    def cache(self, blocks: Iterable[str]) -> None:
        """Reads these blocks through the page cache."""
        buffer = bytearray(PIECE)
        for block in blocks:
            for file, begin, end in self.blocks[block]:
                with open(self.files[file].path, "rb", buffering=0) as stored:
                    stored.seek(begin)
                    while stored.tell() < end and stored.readinto(
                        memoryview(buffer)[: min(PIECE, end - stored.tell())]
                    ):
                        pass


def joined(ranges: list[Range]) -> list[Range]:
    """Neighbours in one file as one range."""
    found: list[Range] = []
    for file, begin, end in sorted(ranges):
        if found and found[-1][0] == file and found[-1][2] == begin:
            begin = found.pop()[1]
        found.append((file, begin, end))
    return found


def layer_of(name: str) -> str | None:
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return found[1] if found else None
