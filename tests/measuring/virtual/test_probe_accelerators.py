"""Measuring accelerators: devices, links between them and the host, and back ends that lack something."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from planner.measuring.probe import probe
from rig.accelerators import Accelerators


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are twelve links, and what is found of them here is no figure."""
    monkeypatch.setattr("planner.measuring.probe._LINK_S", 0.05)
    monkeypatch.setattr("planner.measuring.probe._DISK_S", 0.1)


def test_every_accelerator_and_link_is_measured(virtual_accelerators: Accelerators) -> None:
    found = probe(seconds=0.2)
    keys = [device.key for device in found.machine.devices]
    assert keys == [0, 1, "cpu"]
    assert found.machine.device(0).kind == virtual_accelerators.devices[0].type
    assert found.notes == ()
    ends = {(link.source, link.to, link.is_pinned) for link in found.machine.links}
    pairs = {(source, to, True) for source, to in permutations(keys, 2)}
    pageable = {(source, to, False) for source, to, _ in pairs if "cpu" in (source, to)}
    assert ends == pairs | pageable | {("disk", "cpu", False)}
    assert all(link.latency_ps for link in found.machine.links if link.source != "disk")
    assert not virtual_accelerators.used_bytes(0) and not virtual_accelerators.used_bytes(1)


def test_a_back_end_without_pinned_memory_is_measured_without(
    virtual_accelerators: Accelerators, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pinned_memory(*_: object) -> None:
        raise RuntimeError("Cannot access accelerator device when none is available.")

    monkeypatch.setattr(torch.Tensor, "pin_memory", no_pinned_memory)
    found = probe(seconds=0.1)
    assert {link.is_pinned for link in found.machine.links if "cpu" in (link.source, link.to)} == {False}
    assert len([note for note in found.notes if "pinned" in note and "none is available" in note]) == 4
    assert found.machine.route("cpu", 0).rule == "as fast as pageable memory"


def test_cards_that_do_not_copy_to_each_other_meet_through_the_host(
    virtual_accelerators: Accelerators, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = torch.Tensor.copy_

    def without_peers(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if "cpu" not in (self.device.type, source.device.type):
            raise RuntimeError("peer access is not supported between these two devices")
        return copy(self, source, non_blocking)

    monkeypatch.setattr(torch.Tensor, "copy_", without_peers)
    found = probe(seconds=0.1)
    assert len([note for note in found.notes if "peer access" in note]) == 2
    assert found.machine.route(0, 1).rule == "through cpu"
