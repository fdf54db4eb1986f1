"""Cases of these tests differ in models, maps and options only, so a few of each run every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from rig.few_cases import leave_to_the_sweep


@pytest.hookimpl(tryfirst=True)  # before cases are left out by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves the others to `make sweep`."""
    leave_to_the_sweep(items, Path(__file__).parent, most_cases=5)
