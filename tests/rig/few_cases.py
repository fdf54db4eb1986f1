"""Of a test with many cases, a few run each time, and all of them in `make sweep`."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest


def leave_to_the_sweep(items: Iterable[pytest.Item], folder: Path, most_cases: int) -> None:
    """Marks all but a few cases of each test below a folder as sweeps.

    Which, depends on their names alone, and not on their order, so that every option is among some.
    """
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.path.is_relative_to(folder):
            by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in by_test.values():
        cases.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        for item in cases[most_cases:]:
            item.add_marker(pytest.mark.sweep)
