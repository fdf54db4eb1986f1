"""An interrupt, wherever CPython takes one, leaves a model as it was, or as it was to be."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import planner
from planner.dispatching import hooks as hooks_module
from planner.dispatching.install.record import RECORD
from planner.dispatching.tensors.placeholder import is_offloaded
from rig import Accelerators
from rig.interrupting import ARE_POINTS_KNOWN, interrupted_in

X = torch.arange(6.0).reshape(2, 3)

pytestmark = pytest.mark.skipif(
    not ARE_POINTS_KNOWN, reason="where signals are taken is known for CPython 3.11"
)


class Counting(nn.Module):
    """Counts its forwards in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n += 1
        return x + self.n


interrupted = partial(interrupted_in, (Path(hooks_module.__file__).parents[1],))


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("blocks", [1, 2.5])
@torch.no_grad()
def test_an_interrupt_anywhere_in_a_forward_leaves_nothing(
    blocks: float, every: int, virtual_accelerators: Accelerators
) -> None:
    """Also between begin and end of fetching and letting go; a counter in a buffer counts what has run."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), Counting(), nn.Linear(3, 3))
    device_map = {"0": 0, "1": "cpu", "2": "cpu", "3": "cpu"}
    plain = copy.deepcopy(model)
    planner.dispatch(model, device_map, offload_buffers=True, staging_bytes={0: int(blocks * 48)})
    model(X), plain(X)
    used_bytes = virtual_accelerators.used_bytes(0)
    stops = 1
    while interrupted(lambda: model(X), stops):
        resting = [r for layer in model[1:] for r in layer._hf_hook.offloaded_modules]
        assert not any(r.is_live or r.staged is not None or r._lock.locked() for r in resting), stops
        assert all(is_offloaded(t) for layer in model[1:] for t in (*layer.parameters(), *layer.buffers()))
        assert virtual_accelerators.used_bytes(0) == used_bytes, stops
        stops += every
    assert stops > 100
    plain[2].n.copy_(planner.state_dict(model)["2.n"])
    assert model(X).equal(plain(X))


def tied() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3))).requires_grad_(False)
    model[2].weight = model[0].weight
    return model


LAYOUTS = [{"0": 0, "1": 1, "2": 0}, {"0": 0, "1": "cpu", "2": "cpu"}]


@pytest.mark.parametrize("every", [41, pytest.param(7, marks=pytest.mark.sweep)])
@pytest.mark.parametrize(("first", "then"), [(None, 0), (None, 1), (0, None), (1, None), (0, 1), (1, 0)])
@torch.no_grad()
def test_an_interrupt_anywhere_in_dispatching(first: int | None, then: int | None, every: int) -> None:
    """From one state to another: not dispatched (None), over two devices, offloaded."""
    want = tied().to(0)(X.to(0)).cpu()
    stops = 1
    while True:
        model = tied()
        own = list(model.parameters())
        if first is not None:
            planner.dispatch(model, LAYOUTS[first])
        where = [p.device for p in model.parameters()]
        run = (
            partial(planner.undispatch, model)
            if then is None
            else partial(planner.dispatch, model, LAYOUTS[then])
        )
        if not interrupted(run, stops):
            break
        if RECORD not in vars(model):
            assert not any("forward" in vars(m) or "_apply" in vars(m) for m in model.modules()), stops
            assert all(
                p is q and p.device.type == "cpu" for p, q in zip(model.parameters(), own, strict=True)
            )
            planner.dispatch(model, LAYOUTS[1])
        else:
            assert model.hf_device_map in LAYOUTS, stops
            if first is not None and model.hf_device_map == LAYOUTS[first]:
                assert [p.device for p in model.parameters()] == where, stops
        assert model(X).cpu().equal(want), stops
        planner.undispatch(model)
        assert all(p is q and p.device.type == "cpu" for p, q in zip(model.parameters(), own, strict=True))
        assert model[2].weight is model[0].weight
        stops += every
    assert stops > 100
