"""An interrupt, wherever CPython takes one, leaves a model and its offload folder as they were, or loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import planner
from rig.interrupting import ARE_POINTS_KNOWN, interrupted_in

pytestmark = pytest.mark.skipif(
    not ARE_POINTS_KNOWN, reason="where signals are taken is known for CPython 3.11"
)

PACKAGE = Path(planner.__file__).parent
PARTS = tuple(PACKAGE / name for name in ("compat", "loading", "dispatching"))
X = torch.randn(2, 3)
HALF = {"0": "disk", "1": "cpu", "2": "disk"}


def three() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)).eval()


def seen_in(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


@pytest.mark.parametrize("tries", [60, pytest.param(1500, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("name", ["load_checkpoint_and_dispatch", "load_checkpoint_in_model"])
def test_an_interrupt_anywhere_in_a_load_of_a_pickle(name: str, tries: int, tmp_path: Path) -> None:
    load: Callable[..., object] = getattr(planner, name)
    stored, earlier = three(), three()
    torch.save(stored.state_dict(), tmp_path / "weights.bin")
    folder = tmp_path / "rest"
    planner.disk_offload(earlier, folder)
    before = seen_in(folder)

    def run(model: nn.Module, where: Path) -> None:
        load(model, tmp_path / "weights.bin", device_map=HALF, offload_folder=where)

    def is_stopped(stop: int) -> bool:
        return interrupted_in(PARTS, lambda: run(three(), tmp_path / "other"), stop)

    low, high = 1, 1 << 17
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_stopped(middle) else (low, middle - 1)
    untouched = 0
    for stop in range(1, low + 1, max(1, low // tries)):
        model = three()
        expected = model(X)
        if not interrupted_in(PARTS, lambda model=model: run(model, folder), stop):  # type: ignore[misc]
            continue
        is_as_before = hasattr(model[0].weight, "data") and not model[0].weight.is_meta
        if is_as_before and torch.equal(model(X), expected):
            untouched += 1
            assert seen_in(folder) == before
        else:
            if name == "load_checkpoint_in_model":
                planner.dispatch_model(model, HALF, offload_dir=folder)
            assert torch.equal(model(X), stored(X))
    assert untouched > tries // 2
