"""An interrupt, wherever CPython takes one, leaves a model as it was, or loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import planner
from layered_net import ALTERNATING, Before, Net, X, empty, expected, is_right, state, written
from planner.dispatching.install.record import RECORD
from rig.interrupting import ARE_POINTS_KNOWN, interrupted_in, points_in

pytestmark = pytest.mark.skipif(
    not ARE_POINTS_KNOWN, reason="where signals are taken is known for CPython 3.11"
)

PACKAGE = Path(planner.__file__).parent
PARTS = tuple(PACKAGE / name for name in ("loading", "dispatching"))
MAPS: dict[str, dict[str, Any]] = {"cpu": {"": "cpu"}, "disk": {"": "disk"}, "alternating": ALTERNATING}
SETTINGS: dict[str, dict[str, Any]] = {
    "as stored": {},
    "copied": {"copy": True},
    "direct": {"read": "direct"},
}


def is_loaded(model: Net, placed: dict[str, Any]) -> bool:
    """Whether the weights are the files' and, where parts are on disk, it says so and runs."""
    if "disk" in placed.values() and not (RECORD in vars(model) and model.hf_device_map == placed):
        return False
    with torch.no_grad():
        return model(X).equal(expected())


def stops_of(run: Callable[[], Any], tries: int) -> range:
    """About so many points, evenly spread over all that a run has."""
    run()  # what is done once in a process is no part of what is counted
    counted = points_in(PARTS, run)
    assert counted > 300
    return range(1, counted + 1, max(1, counted // tries))


@pytest.mark.parametrize("tries", [5, pytest.param(1500, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("make", [empty, Net])
@pytest.mark.parametrize("layout", MAPS)
def test_an_interrupt_anywhere_in_a_load(
    layout: str, make: Callable[[], Net], settings: str, tries: int, tmp_path: Path
) -> None:
    folder, placed = written(tmp_path), MAPS[layout]
    listing = sorted(tmp_path.rglob("*"))
    run = partial(planner.load, folder, plan=placed, **SETTINGS[settings])
    threads = threading.active_count()
    untouched = finished = 0
    for stop in stops_of(lambda: run(model=make()), tries):
        model = make()
        before = Before(model)
        if not interrupted_in(PARTS, partial(run, model=model), stop):
            break  # the reading thread's share of a run is never quite the same
        difference = before.difference()
        if difference:
            assert is_loaded(model, placed), (stop, difference)
            finished += 1
        else:
            untouched += 1
        planner.load(folder, model, placed)
        assert is_right(model, 1), stop
        assert sorted(tmp_path.rglob("*")) == listing, stop
        del model, before
    assert untouched > finished
    assert threading.active_count() <= threads + 3


@pytest.mark.parametrize("tries", [8, pytest.param(1000, marks=pytest.mark.sweep)])
@pytest.mark.parametrize(
    ("first", "then"), [("disk", "alternating"), ("alternating", "cpu"), ("cpu", "disk")]
)
def test_an_interrupt_in_loading_anew(first: str, then: str, tries: int, tmp_path: Path) -> None:
    """A model that runs goes on running: with the weights that it had, or with the new ones."""
    old, new = written(tmp_path / "old"), written(tmp_path / "new", state(seed=2))
    wants = [expected(), expected(seed=2)]

    def ready() -> Net:
        model: Net = planner.load(old, empty(), MAPS[first])
        return model

    for stop in stops_of(lambda: planner.load(new, ready(), MAPS[then]), tries):
        model = ready()
        if not interrupted_in(PARTS, partial(planner.load, new, model, MAPS[then]), stop):
            break
        with torch.no_grad():
            assert any(model(X).equal(want) for want in wants), stop
            planner.load(new, model, MAPS[then])
            assert model(X).equal(wants[1]), stop


@pytest.mark.parametrize("every", [211, pytest.param(1, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("read", ["auto", "direct"])
@torch.no_grad()
def test_an_interrupt_anywhere_in_a_forward(read: str, every: int, tmp_path: Path) -> None:
    """No buffer stays taken: the next forwards, in which each is needed, are right and do not wait for ever."""
    model = planner.load(written(tmp_path), empty(), {"": "disk"}, read=read)
    assert is_right(model)
    stop = 1
    while interrupted_in(PARTS, lambda: model(X), stop):
        assert all(parameter.is_meta for parameter in model.parameters()), stop
        assert model(X).equal(expected()), stop
        stop += every
    assert is_right(model)


def test_an_interrupt_in_reading_the_headers(tmp_path: Path) -> None:
    folder = written(tmp_path)
    parts = (PACKAGE / "checkpoint", PACKAGE / "planning")
    for stop in (1, 10, 40, 100):
        model = empty()
        before = Before(model)
        interrupted_in(parts, lambda model=model: planner.load(folder, model, {"": "disk"}), stop)
        assert before.difference() == "" or is_right(model, 1)
