"""`planner devices`: what is free here, and how long finding out took."""

from __future__ import annotations

import pytest

from command_line import Command, answer
from planner.devices.detect import FreeMemory, free_host_memory
from planner.units import format_bytes

FOUND = (
    FreeMemory(device=0, free_bytes=80 << 30, origin="torch.cuda.mem_get_info(0)"),
    FreeMemory(device="cpu", free_bytes=200 << 30, origin="psutil.virtual_memory().available"),
)


def test_the_devices_of_this_machine_are_listed(command: Command) -> None:
    data = answer(command("devices", "--json"))
    (host,) = [row for row in data["devices"] if row["device"] == "cpu"]
    assert host["free_bytes"] == pytest.approx(free_host_memory().free_bytes, rel=0.5)
    assert data["seconds"] >= 0


def test_a_table_names_what_is_free_and_who_says_so(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.cli.devices.free_devices", lambda folder: FOUND)
    lines = command("devices").stdout.splitlines()
    assert lines[0].split() == ["device", "free", "shares", "said", "by"]
    for free, line in zip(FOUND, lines[1:3], strict=True):
        assert line.split(maxsplit=1)[0] == str(free.device)
        assert format_bytes(free.free_bytes) in line
        assert line.rstrip().endswith(free.origin)
    assert lines[3].startswith("detected in 0.0 s")


def test_an_offload_folder_adds_its_disk(command: Command) -> None:
    data = answer(command("devices", "--json", "--offload-folder", "."))
    assert [row["device"] for row in data["devices"]][-1] == "disk"
