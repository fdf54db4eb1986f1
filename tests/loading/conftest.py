"""Of a test with many cases, a few run each time, and all of them in `make sweep`: they differ in models, maps and options only."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
MOST_CASES = 4


@pytest.hookimpl(tryfirst=True)  # before cases are left out by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all but a few cases of each test; which, depends on their names alone, so that every option is among some."""
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.path.is_relative_to(FOLDER):
            by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in by_test.values():
        cases.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        for item in cases[MOST_CASES:]:
            item.add_marker(pytest.mark.sweep)
