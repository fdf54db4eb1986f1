"""Forwards of models that are partly on disk: threads, errors, other orders, kept weights, forks.

Each case is a process of its own: elsewhere they crash, hang or compute with other weights.
"""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from layered_net import (
    ALTERNATING,
    EVERY_WAY,
    LAYERS,
    MAPS,
    READS,
    Net,
    X,
    empty,
    expected,
    is_right,
    state,
    written,
)
from planner import OffloadError
from rig.faults import all_must_end_clean


def case_of_threads(folder: Path, layout: str, read: str, grad: bool) -> None:
    """Four threads of sixty forwards each, without an error or a wrong answer."""
    torch.set_num_threads(1)
    model = planner.load(written(folder), empty(), MAPS[layout], read=read)
    want, faults = expected(), list[str]()

    def run() -> None:
        with torch.set_grad_enabled(grad):
            for _ in range(60):
                try:
                    if not model(X).equal(want):
                        faults.append("wrong")
                except Exception as error:
                    faults.append(repr(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, f"{len(faults)} of 240: {sorted(set(faults))[:3]}"


@pytest.mark.parametrize("grad", [False, True])
def test_threads_share_a_model(grad: bool, tmp_path: Path) -> None:
    variants = [(*way, grad) for way in EVERY_WAY]
    all_must_end_clean(case_of_threads, tmp_path, variants, time_limit_s=120)


def case_of_errors_in_a_forward(folder: Path, layout: str, read: str) -> None:
    """An error of the caller's or of a block leaves no buffer taken, no thread waiting and no weight in its module."""
    model = planner.load(written(folder), empty(), MAPS[layout], read=read)
    for stop in (*range(LAYERS), *range(LAYERS)):
        handle = model.layers[stop].register_forward_hook(lambda *_: 1 / 0)
        try:
            model(X)
        except ZeroDivisionError:
            pass
        else:
            raise AssertionError("the hook was not called")
        handle.remove()
        for name, parameter in model.layers.named_parameters():
            assert parameter.is_meta or (MAPS[layout] is ALTERNATING and int(name[0]) % 2), name
        assert is_right(model, 1)
    with torch.no_grad():
        wrong = torch.ones(2, 3)
        for _ in range(3):
            try:
                model(wrong)
            except RuntimeError:
                assert is_right(model, 1)


def test_errors_in_a_forward_leave_nothing(tmp_path: Path) -> None:
    all_must_end_clean(case_of_errors_in_a_forward, tmp_path, EVERY_WAY)


def case_of_odd_orders(folder: Path, layout: str, read: str) -> None:
    """Blocks alone, backwards, twice, in each other, and a forward that ends early: the order learnt is then wrong."""
    model = planner.load(written(folder), empty(), MAPS[layout], read=read)
    plain = Net()
    plain.load_state_dict(state())
    with torch.no_grad():
        for order in ([5, 4, 3, 2, 1, 0], [2, 2, 2], [0, 5, 1, 4], [3], list(range(6)), [0, 1]):
            for number in order:
                assert model.layers[number](X).equal(plain.layers[number](X)), order
            assert is_right(model, 1)
        inner = model.layers[4]
        model.layers[1].register_forward_hook(lambda module, given, output: inner(output))
        plain.layers[1].register_forward_hook(lambda module, given, output: plain.layers[4](output))
        assert all(model(X).equal(plain(X)) for _ in range(3))


def test_blocks_run_in_any_order(tmp_path: Path) -> None:
    all_must_end_clean(case_of_odd_orders, tmp_path, EVERY_WAY)


class Keeping(nn.Linear):
    """Gives its weight, and views of it, to whoever wants to keep them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept.setdefault(id(self), []).extend([self.weight, self.weight.detach()[3:5], self.weight.t()])
        return super().forward(x)


kept: dict[int, list[torch.Tensor]] = {}


def case_of_kept_weights(folder: Path, read: str) -> None:
    """A weight that somebody keeps stays what it was, however many buffers are refilled."""
    kept.clear()
    model = empty()
    for layer in model.layers:
        layer.down.__class__ = Keeping
    planner.load(written(folder), model, {"": "disk"}, read=read)
    assert is_right(model, 4)
    assert len(kept) == LAYERS
    for number, layer in enumerate(model.layers):
        want = state()[f"layers.{number}.down.weight"]
        for whole, rows, turned in zip(*[iter(kept[id(layer.down)])] * 3, strict=True):
            assert whole.equal(want) and rows.equal(want[3:5]) and turned.equal(want.t()), number


def test_a_weight_that_is_kept_is_not_refilled(tmp_path: Path) -> None:
    all_must_end_clean(case_of_kept_weights, tmp_path, [(read,) for read in READS])


def case_of_a_weight_outside(folder: Path, layout: str) -> None:
    model = planner.load(written(folder), empty(), MAPS[layout])
    weight = model.layers[0].up.weight
    for use in (lambda: torch.nn.functional.linear(X, weight), lambda: X @ weight.t(), lambda: weight + 1):
        try:
            use()
        except OffloadError as error:
            assert error.name == "layers.0.up.weight" or "layers.0.up.weight" in str(error), error
        else:
            raise AssertionError("computed with nothing")
    fetching = planner.load(folder, empty(), MAPS[layout], outside="fetch")
    want = X @ state()["layers.0.up.weight"].t()
    assert (X @ fetching.layers[0].up.weight.t()).equal(want)


def test_a_weight_used_outside_of_its_module(tmp_path: Path) -> None:
    all_must_end_clean(case_of_a_weight_outside, tmp_path, [(layout,) for layout in MAPS])


def case_of_a_fork(folder: Path, layout: str, read: str, in_a_forward: bool) -> None:
    """The child has no reading thread; it must not wait for one, nor may its end take the parent's."""
    torch.set_num_threads(1)
    model = planner.load(written(folder), empty(), MAPS[layout], read=read)
    assert is_right(model, 2)
    children: list[int] = []

    def fork(*_: Any) -> None:
        if not children:
            children.append(os.fork())

    if in_a_forward:
        handle = model.layers[2].register_forward_hook(fork)
        is_same = is_right(model, 1)
        handle.remove()
    else:
        fork()
        is_same = True
    is_same = is_same and is_right(model, 3)
    if children[0] == 0:
        os._exit(0 if is_same and pickle.loads(pickle.dumps(state())) else 1)
    assert is_same
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert is_right(model, 2)


@pytest.mark.parametrize("in_a_forward", [False, True])
def test_a_forked_child_runs_too(in_a_forward: bool, tmp_path: Path) -> None:
    all_must_end_clean(case_of_a_fork, tmp_path, [(*way, in_a_forward) for way in EVERY_WAY])
