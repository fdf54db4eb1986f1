"""The largest context and the largest batch run within the budget that they were found for, and 6 % more does not."""

from __future__ import annotations

import pytest

from largest_runs import BUDGETS, found_for, runs_with
from rig import Accelerators


@pytest.mark.parametrize("of", ["context_length", "batch_size"])
@pytest.mark.parametrize("devices", BUDGETS)
@pytest.mark.parametrize("name", ["llama", "gemma", "mixtral"])
def test_the_largest_runs_and_more_does_not(
    virtual_accelerators: Accelerators, name: str, devices: str, of: str
) -> None:
    found = found_for(name, of, BUDGETS[devices])
    assert found.limit == "proven"
    assert runs_with(virtual_accelerators, name, of, BUDGETS[devices], found) == (True, False)
