"""The value of a pipeline orders splits as they run, in two processes that sleep as long as their stages are declared to take."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from clocked_pipelines import inversions, measured_s, modelled_s


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_splits_over_two_processes_are_ordered_as_modelled() -> None:
    """`benches/pipeline_order.py` has more, and three processes."""
    splits = [(1, 7), (4, 4), (7, 1)]
    modelled = [modelled_s(split) for split in splits]
    measured = measured_s(splits, rounds=1)
    assert all(took >= 0.95 * wanted for wanted, took in zip(modelled, measured, strict=True))
    pairs, inverted = inversions(modelled, measured, 1.4)
    assert pairs >= 2
    assert inverted == 0
