"""How fast a folder's disk reads what is not in the page cache."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

from planner.devices.machine_parts import Link
from planner.measuring.shots import Shots

_FILE_BYTES: Final = 256 << 20
_PART_BYTES: Final = 8 << 20
_LEAST_READS: Final = 3


def measured_disk(folder: Path, most_s: float) -> tuple[list[Link], list[str]]:
    """The link from the disk to the host, or why there is none.

    Args:
        folder: where a file of 256 MiB is written for it, and removed.
        most_s: for reading, about.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix="planner-probe-") as file:
            _fill(file.fileno())
            shots = _reads(file.fileno(), most_s)
    except OSError as error:
        return [], [f"disk at {folder}: {error}"]
    if shots is None:
        return [], [f"disk at {folder}: this system cannot drop a file from its page cache"]
    rate = shots.rate(_FILE_BYTES, f"cold reads of {_FILE_BYTES >> 20} MiB at {folder}")
    return [Link(source="disk", to="cpu", is_pinned=False, bytes_per_s=rate)], []


def _fill(file: int) -> None:
    part = os.urandom(_PART_BYTES)  # what disks compress would be read too fast
    for _ in range(_FILE_BYTES // _PART_BYTES):
        view = memoryview(part)
        while view:
            view = view[os.write(file, view) :]
    os.fsync(file)


def _reads(file: int, most_s: float) -> Shots | None:
    drop = getattr(os, "posix_fadvise", None)
    if drop is None:
        return None
    found: list[float] = []
    begun_s = time.perf_counter()
    while len(found) < _LEAST_READS or time.perf_counter() - begun_s < most_s:
        drop(file, 0, 0, os.POSIX_FADV_DONTNEED)
        found.append(_read(file))
    return Shots(median(found), min(found), max(found), len(found))


def _read(file: int) -> float:
    part = bytearray(_PART_BYTES)
    begun_s = time.perf_counter()
    for offset in range(0, _FILE_BYTES, _PART_BYTES):
        os.preadv(file, [part], offset)
    return time.perf_counter() - begun_s
