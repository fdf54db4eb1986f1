"""Plans that are modelled to take longer do, where declared rates are slept for: runs, copies of weights, hops."""

from __future__ import annotations

import random

import pytest

from clocked_runs import drawn, inversions, measured
from rig.accelerators import Accelerators


@pytest.mark.usefixtures("one_thread")
def test_the_order_of_drawn_placements_is_that_of_the_model(virtual_accelerators: Accelerators) -> None:
    """`benches/clocked_order.py` has more of them."""
    draw = random.Random(2)
    placed = [measured(virtual_accelerators, drawn(draw), rounds=1) for _ in range(5)]
    for each in placed:
        # Without what was slept for, the clock would measure nothing.
        assert each.fetched_bytes <= each.slept_bytes
        assert each.slept_bytes == each.copied_bytes
        assert each.measured_s >= 0.9 * each.modelled_s
    # What else runs on the machine takes its time, too.
    pairs, inverted = inversions(placed, 1.5)
    assert pairs >= 3
    assert inverted == 0
