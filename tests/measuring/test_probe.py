"""Measuring the host and its disk: what is found, marked and noted."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.devices.machine import Machine
from planner.devices.rate import Rate
from planner.errors import InvalidInputError
from planner.measuring import computing, disk
from planner.measuring.places import last_cache_bytes
from planner.measuring.probe import probe
from planner.measuring.shots import Shots, shots_of


@pytest.fixture(scope="module")
def found() -> Machine:
    return probe(seconds=0.2).machine


def test_the_host_is_measured_in_every_type_and_comes_back_from_json(found: Machine) -> None:
    host = found.device("cpu")
    assert host.kind == "cpu"
    assert host.memory_bytes and host.memory_bytes_per_s and host.launch_ps
    assert {*host.weights_bytes_per_s} == {*computing.ELEMENT_TYPES} == {*host.flops_per_s}
    for rates in host.weights_bytes_per_s.values():
        assert tuple(rates) == computing.TOKENS
        assert all(
            rate.origin == "measured" and rate.low <= rate.value <= rate.high for rate in rates.values()
        )
    assert Machine.from_json(found.to_json()) == found


def test_more_tokens_at_once_get_no_more_weights_through(found: Machine) -> None:
    """Sixteen tokens' products read the weights as often as one token's, and compute sixteen times as much."""
    for rates in found.device("cpu").weights_bytes_per_s.values():
        assert rates[128].low <= rates[1].high


def test_the_disk_has_a_link_to_the_host(found: Machine, tmp_path: Path) -> None:
    assert found.route("disk", "cpu").links[0].bytes_per_s.origin == "measured"
    links, notes = disk.measured_disk(tmp_path, 0.01)
    assert (len(links), notes) == (1, [])
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_or_may_not_be_written_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        links, notes = disk.measured_disk(tmp_path, 0.01)
    assert links == []
    assert "No space left" in notes[0]
    assert not list(tmp_path.iterdir())
    gone = tmp_path / "gone"
    assert "gone" in disk.measured_disk(gone, 0.01)[1][0]


def test_a_type_that_the_device_lacks_is_noted_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.functional.linear

    def without_half(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if inputs.dtype == torch.float16:
            raise RuntimeError("\"addmm_impl\" not implemented for 'Half'\nsecond line")
        return linear(inputs, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", without_half)
    seen = probe(seconds=0.1)
    assert {*seen.machine.device("cpu").flops_per_s} == {"bfloat16", "float32"}
    assert seen.notes == ("cpu: no rate for float16: \"addmm_impl\" not implemented for 'Half'",)


def test_numbers_of_a_busy_machine_are_marked() -> None:
    """A call that now and then takes three times as long."""
    turn = iter(range(10**6))
    shots = shots_of(lambda: time.sleep(0.009 if next(turn) % 4 == 3 else 0.003), lambda: None, most_s=0.1)
    assert shots.rate(1000, "sleeps").is_busy
    assert shots.duration_ps("sleeps").is_busy
    assert not Shots(1.0, 0.9, 1.1, 5).rate(1000, "steady").is_busy
    assert not Rate.of_table(1000, 0.3, "a sheet").is_busy


def test_short_calls_are_repeated_until_a_clock_can_tell_them() -> None:
    calls = []
    shots = shots_of(lambda: calls.append(1), lambda: None, most_s=0.01)
    assert len(calls) > 1000
    assert 0 < shots.least_s <= shots.median_s <= shots.most_s < 0.002


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "8", True, 1e9])
def test_seconds_that_are_none_are_refused(seconds: float) -> None:
    with pytest.raises(InvalidInputError, match="seconds must be a positive number"):
        probe(seconds=seconds)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is no folder"):
        probe(folder=tmp_path / "gone")


def test_the_last_cache_is_the_largest_that_the_kernel_says(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1M", "33M", "odd")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert last_cache_bytes(tmp_path) == 33 << 20
    assert last_cache_bytes(tmp_path / "index0") == 64 << 20


@pytest.mark.parametrize(
    "junk", [True, -1, 3, "", "a\0b", b"x", [], {}, object(), len], ids=lambda junk: type(junk).__name__
)
@pytest.mark.parametrize("name", ["folder", "tell", "seconds"])
def test_junk_is_refused_before_anything_is_measured(
    junk: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> None:
        raise _MeasuredError

    monkeypatch.setattr("planner.measuring.probe.measured_device", measured)
    meant = {"folder": (str,), "tell": (type(len),), "seconds": (int,)}[name]
    try:
        probe(**{name: junk})
    except InvalidInputError as error:
        assert str(error)
    except _MeasuredError:
        assert isinstance(junk, meant)


class _MeasuredError(Exception):
    """Measuring has begun."""
