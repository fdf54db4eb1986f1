"""Signs of life: who is lost, and which of several is to blame."""

from __future__ import annotations

import torch.distributed as dist

from planner.pipelines.signs import Sign, Signs
from waiting import is_soon


def test_who_was_cut_off_before_is_not_the_one_to_blame() -> None:
    """torchrun ends the other ranks of a machine when one of them has ended."""
    store = dist.HashStore()
    all_signs = [Signs(store, rank, 4, timeout_s=4) for rank in range(4)]
    for signs in all_signs:
        signs.begin()
    watching, ended, cut_off, closed = all_signs
    assert is_soon(lambda: len(list(watching.seen())) == 3)
    assert not watching.lost()
    ended.mine = Sign(1, 4, "computing")
    cut_off.mine = Sign(1, 4, "waiting")
    closed.end()
    cut_off.end("cut off")  # silent before the other one is
    assert is_soon(lambda: [each.rank for each in watching.lost()] == [2])
    ended.end("computing")
    assert is_soon(lambda: [each.rank for each in watching.lost()] == [1, 2])
    assert watching.lost()[0].sign == Sign(1, 4, "computing")
    watching.end()


def test_being_cut_off_is_told_at_once() -> None:
    """The process may be ended before its next sign would be due."""
    store = dist.HashStore()
    signs = Signs(store, 0, 2, timeout_s=20)
    signs.every_s = 600
    signs.begin()
    signs.cut_off()
    assert is_soon(lambda: b"cut off" in store.get("sign/0"))
    signs.end()
