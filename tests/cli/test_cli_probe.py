"""`planner probe`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import Command
from planner.devices.machine import Machine


def test_what_is_measured_is_shown_and_written(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "machine.json"
    done = command("probe", "--seconds", "0.1", "--folder", tmp_path, "--out", out)
    assert done.exit_code == 0, done.stderr
    machine = Machine.read(out)
    assert machine.device("cpu").memory_bytes_per_s is not None
    assert "bfloat16 weights, 1 token " in done.stdout
    assert "starts a module in" in done.stdout
    assert str(out) in done.stdout
    assert "measuring links" in done.stderr


def test_json_is_the_machine(command: Command, tmp_path: Path) -> None:
    done = command("probe", "--seconds", "0.1", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == "planner.machine"
    assert Machine.from_json(done.stdout).device("cpu").kind == "cpu"


def test_what_could_not_be_written_is_told_before_anything_is_measured(
    command: Command, tmp_path: Path
) -> None:
    done = command("probe", "--out", tmp_path / "no" / "machine.json")
    assert done.exit_code == 2
    assert "there is no folder" in done.stderr
    assert "measuring" not in done.stderr
    assert command("probe", "--seconds", "0").exit_code == 2
    assert command("probe", "--seconds", "nan").exit_code == 2
    assert command("probe", "--folder", tmp_path / "gone").exit_code == 2
